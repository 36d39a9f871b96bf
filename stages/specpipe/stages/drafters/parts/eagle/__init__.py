"""Shared by drafters whose first layer attends with [embedding; hidden]: layer, first weights."""
