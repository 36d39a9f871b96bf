"""Chat templates in the style of well-known families, and real fast tokenizers for them.

Each marks what the assistant generates, so that masks by markers and by boundaries can be held
against each other; `unmarked` takes the markers out again.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.dump.conftest import Row

MERGES = (("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "y"), ("Ċ", "Ċ"))


@dataclass(frozen=True)
class Family:
    template: str
    special: tuple[str, ...]
    stops: tuple[str, ...]
    """At which an engine stops; the first is the tokenizer's end of sequence."""

    @property
    def unmarked(self) -> str:
        bare = self.template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        assert bare != self.template
        return bare


LLAMA3 = Family(
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Today: {{ strftime_now('%d %b %Y') }}\n\n{{ system | trim }}"
    "{% if tools %}{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}{% endif %}<|eot_id|>"
    "{% for m in messages %}"
    "<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n"
    "{% if m.role == 'assistant' %}{% generation %}"
    "{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}"
    '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}<|eot_id|>'
    "{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endgeneration %}"
    "{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    ("<|eot_id|>", "<|eom_id|>"),
)

# Turns before the last question lose their reasoning. The markers take the last new line in.
QWEN = Family(
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}{{ tool | tojson }}"
    "{% endfor %}</tools><|im_end|>\n{% endif %}"
    "{% set ns = namespace(last=0) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}"
    "{% if m.reasoning_content and loop.index0 > ns.last %}"
    "<think>\n{{ m.reasoning_content.strip() }}\n</think>\n\n{% endif %}"
    "{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endgeneration %}"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}"
    "\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    ("<|im_end|>", "<|endoftext|>"),
)

# The markers take the header in, and the prompt forces the model to reason.
FORCED_THINKING = Family(
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant\n"
    "{% if m.reasoning and loop.last %}<think>\n{{ m.reasoning }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endgeneration %}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    ("<|im_end|>",),
)

# The prompt begins the reasoning: what answers the last question always has it, if only empty, and
# what was said before never.
OPENED_THINKING = Family(
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% set ns = namespace(last=0) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}"
    "{% if loop.index0 > ns.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endgeneration %}"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}"
    "\n</tool_response><|im_end|>\n"
    "{% elif m.role in ('user', 'system') %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    ("<|im_end|>", "<|endoftext|>"),
)

# An answer has no end of its own: what stops an engine is the token of whoever speaks next.
GLM = Family(
    "{{ bos_token }}{% set ns = namespace(last=0) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|assistant|>{% generation %}{{ '\n' }}<think>"
    "{% if loop.index0 > ns.last %}{{ m.reasoning_content }}{% endif %}</think>"
    "{{ '\n' + m.content.strip() }}"
    "{% for c in m.tool_calls or [] %}{{ '\n' }}<tool_call>{{ c.function.name }}\n"
    "{{ c.function.arguments | tojson }}\n</tool_call>{% endfor %}{% endgeneration %}"
    "{% elif m.role == 'tool' %}<|observation|>\n{{ m.content }}"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    ("<sop>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    ("<|endoftext|>", "<|user|>", "<|observation|>"),
)

# The system prompt stands in the last question, and there is no generation prompt.
MISTRAL = Family(
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% set ns = namespace(last=0) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] "
    "{% if system is defined and loop.index0 == ns.last %}{{ system }}\n\n{% endif %}"
    "{{ m.content }} [/INST]"
    "{% else %}{% generation %} {{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}",
    ("<s>", "</s>", "[INST]", "[/INST]"),
    ("</s>",),
)

# No system role: its text begins the first question. The markers leave the end out.
GEMMA = Family(
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}"
    "{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if loop.first %}{{ first }}{% endif %}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}{% endgeneration %}"
    "{% else %}{{ m.content | trim }}{% endif %}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    ("<eos>", "<end_of_turn>"),
)

# An end of text after the last turn.
PHI3 = Family(
    "{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>\n{% endgeneration %}"
    "{% else %}{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ("<|endoftext|>", "<|end|>"),
)

COMMAND_R = Family(
    "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|>"
    "{% if m.role == 'assistant' %}<|CHATBOT_TOKEN|>"
    "{% generation %}{{ m.content.strip() }}<|END_OF_TURN_TOKEN|>{% endgeneration %}"
    "{% else %}{{ '<|SYSTEM_TOKEN|>' if m.role == 'system' else '<|USER_TOKEN|>' }}"
    "{{ m.content.strip() }}<|END_OF_TURN_TOKEN|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
    (
        "<BOS_TOKEN>",
        "<|START_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|USER_TOKEN|>",
        "<|CHATBOT_TOKEN|>",
        "<|SYSTEM_TOKEN|>",
    ),
    ("<|END_OF_TURN_TOKEN|>",),
)

# Reasoning never stands in the text, but the prompt begins it; calls have no content.
DEEPSEEK = Family(
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'tool' %}<|tool_output|>{{ m.content }}<|tool_output_end|>"
    "{% elif m.content is none %}<|Assistant|>{% generation %}<|tool_calls|>"
    "{% for c in m.tool_calls %}{{ c.function.name + '\n' + c.function.arguments }}{% endfor %}"
    "<|tool_calls_end|>{{ eos_token }}{% endgeneration %}"
    "{% else %}{% if not (messages[loop.index0 - 1].role == 'tool') %}<|Assistant|>{% endif %}"
    "{% generation %}{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role != 'tool' %}<|Assistant|><think>\n"
    "{% endif %}",
    (
        "<|begin|>",
        "<|end|>",
        "<|User|>",
        "<|Assistant|>",
        "<|tool_calls|>",
        "<|tool_calls_end|>",
        "<|tool_output|>",
        "<|tool_output_end|>",
    ),
    ("<|end|>",),
)

# Channels; only the last turn ends with what an engine stops at, the ones before end otherwise.
HARMONY = Family(
    "{% if tools %}<|start|>developer<|message|># Tools\n{% for tool in tools %}"
    "type {{ tool.function.name }}\n{% endfor %}<|end|>{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}"
    "{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}"
    "<|start|>assistant{% generation %}"
    "{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant"
    "{% endif %}"
    " to=functions.{{ f.name }}<|channel|>commentary json<|message|>{{ f.arguments | tojson }}"
    "<|call|>{% endgeneration %}"
    "{% else %}<|start|>assistant{% generation %}"
    "{% if loop.last and m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
    "<|start|>assistant{% endif %}"
    "<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last %}<|return|>{% endif %}{% endgeneration %}"
    "{% if not loop.last %}<|end|>{% endif %}{% endif %}"
    "{% elif m.role == 'tool' %}<|start|>functions.f to=assistant<|channel|>commentary<|message|>"
    "{{ m.content }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
    ("<|return|>", "<|call|>"),
)

PLAIN = Family(
    "{% for m in messages %}{{ m.role }}: "
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\n{% endgeneration %}"
    "{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    ("<eos>",),
    ("<eos>",),
)

FAMILIES = {
    "llama3": LLAMA3,
    "qwen": QWEN,
    "forced thinking": FORCED_THINKING,
    "opened thinking": OPENED_THINKING,
    "glm": GLM,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "phi3": PHI3,
    "command-r": COMMAND_R,
    "deepseek": DEEPSEEK,
    "harmony": HARMONY,
}


def byte_level(special: Sequence[str], merges: Sequence[tuple[str, str]] = ()) -> Tokenizer:
    """Byte-level BPE, whose merges may reach across the boundaries of turns."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*special, *alphabet, *(left + right for left, right in merges)]
    vocab = {piece: at for at, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def merging(special: Sequence[str]) -> Tokenizer:
    return byte_level(special, MERGES)


def metaspace(special: Sequence[str]) -> Tokenizer:
    """As sentencepiece does it: a space is written with the word after it."""
    tokenizer = _sentencepiece(special)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def prepended(special: Sequence[str]) -> Tokenizer:
    """As sentencepiece did it: a space is put before each piece between special tokens."""
    tokenizer = _sentencepiece(special)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return tokenizer


def _sentencepiece(special: Sequence[str]) -> Tokenizer:
    merges = [("▁", "y"), ("▁y", "o"), ("h", "e")]
    characters = [chr(code) for code in range(33, 127)]
    pieces = ["<unk>", *special, *characters, "\n", "▁", "é", *(a + b for a, b in merges)]
    vocab = {piece: at for at, piece in enumerate(pieces)}
    return Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True))


TOKENIZERS: dict[str, Callable[[Sequence[str]], Tokenizer]] = {
    "bytes": byte_level,
    "merging": merging,
    "metaspace": metaspace,
    "prepended": prepended,
}


def save_family(
    folder: Path, family: Family, tokenizer: str = "bytes", *, template: str | None = None
) -> Path:
    """A target's folder, as far as its texts are concerned."""
    made = TOKENIZERS[tokenizer](family.special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=family.special[0],
        eos_token=family.stops[0],
        extra_special_tokens=list(family.special),
    )
    fast.chat_template = family.template if template is None else template
    fast.save_pretrained(folder)
    ids = fast.convert_tokens_to_ids(list(family.stops))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return folder


def chat(*turns: str | Row) -> list[Row]:
    """`user`, `assistant`, ... in turn for texts; a message as it is."""
    roles = ("user", "assistant")
    messages: list[Row] = []
    for turn in turns:
        spoken = sum(isinstance(one, str) for one in turns[: len(messages)])
        messages.append(
            {"role": roles[spoken % 2], "content": turn} if isinstance(turn, str) else turn
        )
    return messages
