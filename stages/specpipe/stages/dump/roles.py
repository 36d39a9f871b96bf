"""Who says a message: the names that data give to the roles of a conversation."""

ASSISTANT = "assistant"

_SPELLINGS = {
    "human": "user",
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bard": ASSISTANT,
    "bing": ASSISTANT,
    "model": ASSISTANT,
    "bot": ASSISTANT,
    "chatbot": ASSISTANT,
    "ai": ASSISTANT,
}
_STANDARD = ("system", "developer", "user", ASSISTANT, "tool")

CALLS = ("function_call", "tool_call", "tool_calls")
"""What ShareGPT calls a turn that calls tools; its value is the JSON text of the calls."""
RESULTS = ("observation", "tool_response", "tool_result", "function_response", "function")
"""What ShareGPT calls the answer of a tool."""


def standard_role(role: str) -> str:
    """The role as engines and chat templates call it; one that is not known stays as it is."""
    plain = role.strip().lower()
    return plain if plain in _STANDARD else _SPELLINGS.get(plain, role)
