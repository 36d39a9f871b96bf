"""Train a second target, unlike the sample target, and write texts for it.

A small Qwen3 or Qwen2 model (tied embeddings, no chat template) on the Python source of this
interpreter's own standard library, so that anybody can make it. Writes OUT/target, OUT/train.jsonl
and OUT/held_out.jsonl: beginnings of functions as prompts (`input_ids`, no token supervised) for
`specpipe dump --generate`. Held out is by module: no function of theirs is trained on.

    scripts/make_code_target --out runs/code
"""

import ast
import json
import sysconfig
import textwrap
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import click
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

from scripts.targets.fit import Samples, Split, fit, new_model, save
from scripts.targets.tokens import token_ids, train_tokenizer

_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings"}
_MOST_TOKENS = 320
_FEWEST_CHARACTERS = 200
_MOST_CHARACTERS = 1600
_PROMPT_TOKENS = 32
_HELD_OUT = 0.1
_ARCHITECTURES = {"qwen3": Qwen3Config, "qwen2": Qwen2Config}


def functions(library: Path) -> Iterator[tuple[str, str]]:
    """(module, source) of each function and method of a middle length, in a fixed order."""
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library)
        if _LEFT_OUT & set(module.parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree, lines = ast.parse(source), source.splitlines()
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                text = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
                if _FEWEST_CHARACTERS <= len(text) <= _MOST_CHARACTERS:
                    yield module.parts[0], text


def is_held_out(name: str) -> bool:
    """Of a module or a file, by its name."""
    return int(sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < _HELD_OUT


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Samples:
    rows = tokenizer([f"<|bos|>{text}\n<|end|>" for text in texts], add_special_tokens=False)
    return [list(ids)[:_MOST_TOKENS] for ids in rows["input_ids"]]


def write_prompts(path: Path, samples: Samples, number: int) -> None:
    """The first tokens of `number` samples spread over all of them, as pretokenised lines."""
    chosen = samples[:: max(1, len(samples) // number)][:number]
    lines = []
    for ids in chosen:
        prompt = ids[:_PROMPT_TOKENS]
        lines.append(json.dumps({"input_ids": prompt, "labels": [-100] * len(prompt)}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(lines)} prompts")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/code"))
@click.option("--architecture", type=click.Choice(list(_ARCHITECTURES)), default="qwen3")
@click.option("--vocab-size", default=3072, show_default=True)
@click.option("--hidden-size", default=128, show_default=True)
@click.option("--num-layers", default=5, show_default=True)
@click.option("--num-epochs", default=3, show_default=True)
@click.option("--learning-rate", default=3e-3, show_default=True)
@click.option("--batch-tokens", default=4096, show_default=True)
@click.option("--train-prompts", default=1200, show_default=True)
@click.option("--held-out-prompts", default=250, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    out: Path,
    architecture: str,
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    num_epochs: int,
    learning_rate: float,
    batch_tokens: int,
    train_prompts: int,
    held_out_prompts: int,
    seed: int,
) -> None:
    """Train the code target and write it, and its prompts, to OUT."""
    torch.manual_seed(seed)
    texts = dict.fromkeys(functions(Path(sysconfig.get_paths()["stdlib"])))
    training = [text for module, text in texts if not is_held_out(module)]
    tokenizer = train_tokenizer(training, vocab_size)
    train = tokenize(tokenizer, training)
    held_out = tokenize(tokenizer, [text for module, text in texts if is_held_out(module)])
    print(f"{sum(map(len, train)):,} training tokens, {sum(map(len, held_out)):,} held out")
    out.mkdir(parents=True, exist_ok=True)
    write_prompts(out / "train.jsonl", train, train_prompts)
    write_prompts(out / "held_out.jsonl", held_out, held_out_prompts)
    model = new_model(
        _ARCHITECTURES[architecture](
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden_size // 32,
            num_key_value_heads=hidden_size // 64,
            head_dim=32,
            max_position_embeddings=1024,
            **token_ids(tokenizer),
            tie_word_embeddings=True,
        )
    )
    samples = Split(train, held_out)
    fit(
        model,
        samples,
        num_epochs=num_epochs,
        learning_rate=learning_rate,
        batch_tokens=batch_tokens,
        seed=seed,
    )
    save(model, tokenizer, out / "target", samples)


if __name__ == "__main__":
    main()
