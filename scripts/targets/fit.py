"""Train a small causal language model from nothing on a CPU, and measure it.

Legend: B samples, T tokens, V vocabulary.
"""

import math
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

Samples = list[list[int]]


class Split(NamedTuple):
    """The samples of a language model."""

    train: Samples
    held_out: Samples


def new_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights; eager attention, which at these lengths is faster on a CPU than
    the flash kernel's backward."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model


def fit(
    model: PreTrainedModel,
    samples: Split,
    *,
    num_epochs: int,
    learning_rate: float,
    batch_tokens: int,
    seed: int,
) -> None:
    """AdamW with a warm-up and a cosine down to a tenth; prints the held-out loss per epoch."""
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    generator = torch.Generator().manual_seed(seed)
    epochs = [make_batches(samples.train, batch_tokens, generator) for _ in range(num_epochs)]
    num_steps, step, start = sum(map(len, epochs)), 0, time.monotonic()
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: (
            min(1.0, (s + 1) / 100)
            * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, s / num_steps))))
        ),
    )
    for epoch, batches in enumerate(epochs, start=1):
        for batch in batches:
            loss, count = summed_loss(model, batch)
            (loss / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            if step % 50 == 0:
                seconds = time.monotonic() - start
                mean = (loss / count).item()
                print(f"step {step}/{num_steps} loss {mean:.3f} {seconds:.0f} s", flush=True)
        of_held_out = held_out_loss(model, samples.held_out)
        print(f"epoch {epoch} held-out loss {of_held_out:.4f}", flush=True)


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    samples: Split,
) -> None:
    """Write the model in bfloat16, and print its loss beside that of a unigram model."""
    model = model.bfloat16()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"held-out loss per token, bf16: {held_out_loss(model, samples.held_out):.4f} nats")
    floor = unigram_loss(samples, len(tokenizer))
    print(f"unigram model:                 {floor:.4f} nats")


def make_batches(
    samples: Samples, tokens_per_batch: int, generator: torch.Generator
) -> list[torch.Tensor]:
    """Samples of like length together, right-padded with -1, in random order."""
    by_length = sorted(samples, key=len)
    batches, batch = [], Samples()
    for sample in by_length:
        if batch and len(sample) * (len(batch) + 1) > tokens_per_batch:
            batches.append(batch)
            batch = []
        batch.append(sample)
    batches.append(batch)
    order = torch.randperm(len(batches), generator=generator).tolist()
    return [
        torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(s) for s in batches[i]], batch_first=True, padding_value=-1
        )
        for i in order
    ]


@torch.compile(dynamic=True)
def summed_loss(
    model: PreTrainedModel, batch_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed next-token loss of a right-padded batch, and how many tokens it is summed over."""
    # bfloat16 is several times slower than float32 on a CPU without instructions for it.
    is_fast = torch.cpu._is_avx512_bf16_supported()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_fast):
        logits_BTV = model(input_ids=batch_BT.clamp(min=0), use_cache=False).logits
    targets = batch_BT[:, 1:].reshape(-1)
    loss = torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].float().flatten(0, 1), targets, ignore_index=-1, reduction="sum"
    )
    return loss, (targets >= 0).sum()


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, samples: Samples) -> float:
    batches = make_batches(samples, 8192, torch.Generator().manual_seed(0))
    sums = [summed_loss(model, batch) for batch in batches]
    return float(sum(loss for loss, _ in sums) / sum(count for _, count in sums))


def unigram_loss(samples: Split, vocab_size: int) -> float:
    """Held-out loss per token of add-one-smoothed token frequencies."""
    counts = Counter(token for sample in samples.train for token in sample[1:])
    total = sum(counts.values()) + vocab_size
    losses = [
        -math.log((counts[token] + 1) / total)
        for sample in samples.held_out
        for token in sample[1:]
    ]
    return sum(losses) / len(losses)
