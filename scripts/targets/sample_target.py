"""Train the sample target of `sample_data/target` on GSM8K, from nothing.

Writes a small Llama-architecture chat model (bf16 safetensors), its own byte-level BPE tokenizer
and a chat template with generation markers, and prints its held-out loss per token beside the
loss of a unigram model, the floor that it has to beat clearly.

    scripts/make_sample_target --gsm8k ../shared/data/gsm8k --out sample_data/target

Nobody needs to run this to use specpipe: the weights are committed.
"""

from pathlib import Path

import click
import torch
from transformers import LlamaConfig, PreTrainedTokenizerFast

from scripts.targets.fit import Samples, Split, fit, new_model, save
from scripts.targets.gsm8k import Conversation, read_conversations
from scripts.targets.tokens import token_ids, train_tokenizer

# `generation` blocks mark what the assistant writes, its end-of-turn token included.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenize(tokenizer: PreTrainedTokenizerFast, conversations: list[Conversation]) -> Samples:
    texts = [tokenizer.apply_chat_template(c, tokenize=False) for c in conversations]
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


@click.command()
@click.option("--gsm8k", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("sample_data/target"))
@click.option("--vocab-size", default=2048, show_default=True)
@click.option("--hidden-size", default=192, show_default=True)
@click.option("--num-layers", default=8, show_default=True)
@click.option("--num-epochs", default=10, show_default=True)
@click.option("--learning-rate", default=2e-3, show_default=True)
@click.option("--batch-tokens", default=4096, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    gsm8k: Path,
    out: Path,
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    num_epochs: int,
    learning_rate: float,
    batch_tokens: int,
    seed: int,
) -> None:
    """Train the sample target and write it to OUT."""
    torch.manual_seed(seed)
    conversations = read_conversations(gsm8k / "train.jsonl")
    tokenizer = train_tokenizer((m["content"] for c in conversations for m in c), vocab_size)
    tokenizer.chat_template = CHAT_TEMPLATE
    train = tokenize(tokenizer, conversations)
    held_out = tokenize(tokenizer, read_conversations(gsm8k / "test.jsonl"))
    print(f"{sum(map(len, train)):,} training tokens, {sum(map(len, held_out)):,} held out")

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32 // 3,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        **token_ids(tokenizer),
        tie_word_embeddings=False,
    )
    model = new_model(config)
    samples = Split(train, held_out)
    fit(
        model,
        samples,
        num_epochs=num_epochs,
        learning_rate=learning_rate,
        batch_tokens=batch_tokens,
        seed=seed,
    )
    save(model, tokenizer, out, samples)


if __name__ == "__main__":
    main()
