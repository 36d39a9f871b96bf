"""Write the sample inputs of `sample_data/`: GSM8K texts, and answers by the sample target itself.

    scripts/make_sample_data --gsm8k GSM8K --target sample_data/target --out sample_data

train/ and held_out/ each get `conversations.jsonl` (messages, GSM8K's own answers),
`pretokenized.jsonl` (the same, as input_ids, attention_mask, labels) and `generated.jsonl`
(answers that the target wrote at temperature 1, pretokenised). The target has learnt GSM8K's
training questions by heart in part, so the generated training answers are to questions of both of
GSM8K's splits; the held-out prompts are all from its test split and stand nowhere in train/.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.targets.gsm8k import Conversation, read_conversations


def pretokenized(ids: list[int], prompt_length: int) -> dict[str, list[int]]:
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": [-100] * prompt_length + ids[prompt_length:],
    }


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, separators=(",", ":"), ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(lines)} lines, {path.stat().st_size / 1e6:.2f} MB", flush=True)


class Writer:
    """The sample target as a writer of answers."""

    def __init__(self, target: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(target)
        self.model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).eval()

    def ids(self, conversation: Conversation, *, prompt: bool) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            conversation[:1] if prompt else conversation,
            tokenize=False,
            add_generation_prompt=prompt,
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def pretokenize(self, conversation: Conversation) -> dict[str, list[int]]:
        prompt, whole = self.ids(conversation, prompt=True), self.ids(conversation, prompt=False)
        assert whole[: len(prompt)] == prompt
        return pretokenized(whole, len(prompt))

    @torch.no_grad()
    def answer(
        self, conversations: list[Conversation], max_new_tokens: int, batch_size: int
    ) -> list[dict[str, list[int]]]:
        """An answer to each first message at temperature 1, its end-of-turn token included."""
        self.tokenizer.padding_side = "left"
        rows = []
        for at in range(0, len(conversations), batch_size):
            prompts = [self.ids(c, prompt=True) for c in conversations[at : at + batch_size]]
            batch = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
            out = self.model.generate(
                **batch,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_new_tokens,
            )
            width = batch["input_ids"].shape[1]
            for prompt, ids in zip(prompts, out[:, width:].tolist(), strict=True):
                end = self.tokenizer.eos_token_id
                answer = ids[: ids.index(end) + 1] if end in ids else ids
                rows.append(pretokenized(prompt + answer, len(prompt)))
        return rows


@click.command()
@click.option("--gsm8k", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--target", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--max-new-tokens", default=192, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(
    gsm8k: Path, target: Path, out: Path, max_new_tokens: int, batch_size: int, seed: int
) -> None:
    """Write the sample inputs to OUT."""
    torch.manual_seed(seed)
    seen, unseen = (read_conversations(gsm8k / f"{part}.jsonl") for part in ("train", "test"))
    held_out, unseen = unseen[:250], unseen[250:]
    writer = Writer(target)
    parts = {
        "train": (seen[:500], seen[:150], seen[500:650] + unseen[:600]),
        "held_out": (held_out[:100], held_out[:50], held_out),
    }
    for part, (conversations, tokenized, questions) in parts.items():
        write_jsonl(out / part / "conversations.jsonl", ({"messages": c} for c in conversations))
        write_jsonl(out / part / "pretokenized.jsonl", map(writer.pretokenize, tokenized))
        answers = writer.answer(questions, max_new_tokens, batch_size)
        write_jsonl(out / part / "generated.jsonl", answers)


if __name__ == "__main__":
    main()
