"""The messages of a row, whichever of the usual forms of conversations it has."""

from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from specpipe.schemas.errors import InputError
from specpipe.schemas.records.sample import Source
from specpipe.stages.text.chat.roles import ASSISTANT, CALLS, RESULTS, standard_role
from specpipe.stages.untrusted.json_text import parse_json

MESSAGES = "messages"
CONVERSATIONS = "conversations"
PROMPT = "prompt"
COMPLETION = "completion"


@dataclass(frozen=True, slots=True)
class GivenMessage:
    """A message with `role` and `content`; the rest of it is not checked yet."""

    value: dict[str, Any]
    where: str
    """File, line and place in the row, for errors."""
    is_context: bool = False
    """Whether it is there for what follows alone, also where the assistant says it."""
    is_left_out: bool = False

    @property
    def role(self) -> str:
        role: str = self.value["role"]
        return role


def given_messages(row: dict[str, Any], source: Source) -> list[GivenMessage]:
    """The messages of a row of `messages`, `conversations` or `prompt` and `completion`.

    Raises InputError where they are no list of objects that each have a role.
    """
    if row.get(MESSAGES) is not None:
        return _listed(row[MESSAGES], MESSAGES, source)
    if row.get(CONVERSATIONS) is not None:
        return _share_gpt(row, source)
    return _prompt_and_completion(row, source)


def _share_gpt(row: dict[str, Any], source: Source) -> list[GivenMessage]:
    """ShareGPT's form; what answers a question that was cut off before it begins is left out."""
    messages = _listed(row[CONVERSATIONS], CONVERSATIONS, source)
    head = list(takewhile(lambda message: message.role == "system", messages))
    rest = messages[len(head) :]
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise InputError(f"{source}: 'system' must be a string")
    if system and not head:
        head = [GivenMessage({"role": "system", "content": system}, f"{source}: 'system'")]
    elif system and [system] != [message.value.get("content") for message in head]:
        raise InputError(f"{source}: 'system' and {CONVERSATIONS!r} give different system prompts")
    cut_off = list(takewhile(lambda message: message.role in (ASSISTANT, "tool"), rest))
    if len(cut_off) == len(rest):
        raise InputError(f"{source}: {CONVERSATIONS!r} holds no question")
    left_out = [replace(message, is_left_out=True) for message in cut_off]
    return [*head, *left_out, *rest[len(cut_off) :]]


def _prompt_and_completion(row: dict[str, Any], source: Source) -> list[GivenMessage]:
    """Lists of messages of which only those of `completion` may be supervised."""
    prompt = _listed(row[PROMPT], PROMPT, source)
    if prompt[-1].role == ASSISTANT:
        raise InputError(
            f"{prompt[-1].where} is the assistant's, so that {PROMPT!r} asks for no answer; it "
            f"belongs into {COMPLETION!r}"
        )
    completion = row.get(COMPLETION)
    if completion is None:
        answer = []
    elif isinstance(completion, str):
        answer = [
            GivenMessage({"role": ASSISTANT, "content": completion}, f"{source}: {COMPLETION!r}")
        ]
    else:
        answer = _listed(completion, COMPLETION, source)
    return [*(replace(message, is_context=True) for message in prompt), *answer]


def _listed(given: Any, field: str, source: Source) -> list[GivenMessage]:
    if not isinstance(given, list) or not given:
        raise InputError(f"{source}: {field!r} must be a list of messages")
    return [_message(message, f"{source}: {field}[{at}]") for at, message in enumerate(given)]


def _message(given: Any, where: str) -> GivenMessage:
    """The message with its role spelled as engines do, whether it is given as `role` or `from`."""
    if isinstance(given, dict) and isinstance(given.get("role"), str):
        return GivenMessage(given | {"role": standard_role(given["role"])}, where)
    if isinstance(given, dict) and isinstance(given.get("from"), str):
        return GivenMessage(_of_share_gpt(given, where), where)
    raise InputError(
        f"{where} must be an object with a 'role' and 'content', or 'from' and 'value'"
    )


def _of_share_gpt(given: dict[str, Any], where: str) -> dict[str, Any]:
    said_by, value = given["from"].strip().lower(), given.get("value")
    rest = {key: entry for key, entry in given.items() if key not in ("from", "value")}
    if said_by in CALLS:
        return {**rest, "role": ASSISTANT, "tool_calls": _calls(value, where)}
    role = "tool" if said_by in RESULTS else standard_role(given["from"])
    return {**rest, "role": role, "content": value}


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    calls = parse_json(value, f"{where}.value", InputError) if isinstance(value, str) else value
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise InputError(f"{where}: 'value' must be the JSON text of a call, or of a list of them")
    return [{"type": "function", "function": call.get("function", call)} for call in calls]
