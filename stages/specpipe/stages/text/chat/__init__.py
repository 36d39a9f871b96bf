"""Conversations: forms of rows, roles, messages; rendering by the chat template."""
