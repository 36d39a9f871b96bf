"""Decoders, final norms and heads of families that transformers builds in other ways."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.families.targets import save_family
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import DumpConfig, GenerateConfig
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.target.backend import Prompt
from specpipe.stages.target.head.head_model import head_numbers
from specpipe.stages.target.head.verifier_head import VerifierHead, save_head
from specpipe.stages.target.hf.backend import HfBackend
from specpipe.stages.target.proof import ProofSample, prove, prove_generation
from specpipe.stages.target.vllm.start import takes_images

CPU = torch.device("cpu")

OTHERS = ("GPT-2", "Gemma 4", "Gemma 4 with per-layer input", "Llama 4")
WRAPPERS = ("Mistral Small 3", "Qwen2.5-VL", "Qwen3-VL", "LLaVA", "Gemma 4 wrapper")


def opened(name: str, folder: Path, layers: Sequence[int] = (1, 2, 3)) -> HfBackend:
    target = save_family(name, folder / "model")
    config = DumpConfig(target=str(target), data=("-",), out="-", device="cpu")
    return HfBackend(config, layers)


def head_of(backend: HfBackend, folder: Path) -> VerifierHead:
    stored = Folder.open(str(folder / "target"))
    stored.create("config.json", (folder / "model" / "config.json").read_bytes())
    save_head(backend.model, stored)
    return VerifierHead.load(stored.read, CPU)


def samples(*lengths: int) -> list[ProofSample]:
    rng = np.random.default_rng(0)
    made = []
    for number, length in enumerate(lengths):
        ids = rng.integers(3, 90, length).astype(np.int32)
        made.append(ProofSample(str(number), ids, np.ones(length, np.uint8)))
    return made


@pytest.mark.parametrize("name", [*OTHERS, *WRAPPERS])
def test_states_and_head_are_the_targets_own(name: str, tmp_path: Path) -> None:
    backend = opened(name, tmp_path)
    head = head_of(backend, tmp_path)
    given = samples(20, 9)
    prove(backend, head, given)
    # Closer than the proof asks for, and no constant: the logits spread.
    for sample, states in zip(given, backend.capture(given), strict=True):
        ids_1T = torch.from_numpy(sample.input_ids).long()[None]
        with torch.no_grad():
            own_TV = backend.model(input_ids=ids_1T, use_cache=False).logits[0]
        logits_TV = head.logits(states.final_TH)
        assert own_TV.std(1).min() > 0.05
        assert (logits_TV - own_TV).abs().max() < 0.02 * own_TV.abs().max()
    settings = GenerateConfig(max_tokens=8, temperature=0.0)
    prompts = [Prompt(sample.input_ids[:5], 0, 8) for sample in given]
    prove_generation(backend, prompts, settings)
    folder = tmp_path / "model"
    numbers = {id(p): p.numel() for p in _head_weights(backend)}
    assert head_numbers(folder) == sum(numbers.values())


def _head_weights(backend: HfBackend) -> list[torch.Tensor]:
    lm_head, embedding = (
        backend.model.get_output_embeddings(),
        backend.model.get_input_embeddings(),
    )
    return [*lm_head.parameters(), *embedding.parameters(), *backend.decoder.norm.parameters()]


@pytest.mark.parametrize(
    ("name", "expected"), [("Mistral Small 3", True), ("Qwen3-VL", True), ("GPT-2", False)]
)
def test_vllm_is_asked_for_the_text_decoder_alone_of_a_wrapper(
    name: str, expected: bool, tmp_path: Path
) -> None:
    target = save_family(name, tmp_path / "model")
    assert takes_images(DumpConfig(target=str(target), data=("-",), out="-")) is expected


@pytest.mark.parametrize("name", WRAPPERS)
def test_weights_beside_the_text_decoder_are_let_go(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path).model
    left = [path for path, _ in model.named_parameters()]
    assert left
    assert not [path for path in left if "vis" in path or "project" in path.split(".")[1]]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Gemma 3n", r"4 residual streams run beside each other .*altup_num_inputs"),
        ("BERT", "no norm after its layers"),
    ],
)
def test_what_no_drafter_is_trained_for_is_refused_in_words(
    name: str, says: str, tmp_path: Path
) -> None:
    folder = save_family(name, tmp_path / "model")
    with pytest.raises(ConfigError, match=says):
        head_numbers(folder)  # by plan, before any weights are read


def test_layers_that_take_several_streams_are_refused_in_words(tmp_path: Path) -> None:
    """Whatever the config calls them."""
    backend = opened("Llama, yarn", tmp_path)
    backend.decoder.layers[2].register_forward_pre_hook(
        lambda _, given: (given[0].expand(4, *given[0].shape),), prepend=True
    )
    with pytest.raises(
        ConfigError, match=r"has the shape \[4, 1, 9, 128\], not one state for each"
    ):
        backend.capture_batch(samples(9))
