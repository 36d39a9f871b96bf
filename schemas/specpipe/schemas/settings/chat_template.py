"""The variables that a chat template may be given beside the conversation."""

from collections.abc import Iterable

_OURS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "messages",
        "raise_exception",
        "return_assistant_tokens_mask",
        "strftime_now",
        "tokenize",
        "tools",
    }
)
_SPECIAL_TOKENS = ("_token", "_special_tokens")


def not_to_be_set(names: Iterable[str]) -> str | None:
    """The first name of what a conversation, or the tokenizer, says by itself."""
    return next((name for name in names if name in _OURS or name.endswith(_SPECIAL_TOKENS)), None)
