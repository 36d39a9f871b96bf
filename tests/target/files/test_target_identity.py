"""Two targets have the same identity exactly when nothing that matters differs."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specpipe.schemas.errors import ConfigError, IntegrityError, SpecpipeError, StoreError
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.target.files.identity import target_identity
from specpipe.stages.target.files.location import local_folder, tokenizer_files
from specpipe.stages.target.files.tokenizer import load_tokenizer
from specpipe.stages.target.hf.backend import HfBackend


@pytest.fixture
def folder(target: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(target("llama"), tmp_path / "copy"))


def test_facts(folder: Path) -> None:
    identity = target_identity(str(folder))
    assert identity.architecture == "LlamaForCausalLM"
    assert (identity.hidden_size, identity.vocab_size, identity.num_layers) == (32, 97, 5)


def test_the_same_weights_in_other_files_are_the_same(folder: Path) -> None:
    before = target_identity(str(folder))
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert target_identity(str(folder)) == before


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../other/model.safetensors"}}',
        '{"weight_map": {"a": "*"}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_index(content: str, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"model\.safetensors\.index\.json"):
        target_identity(str(folder))


def test_one_changed_weight_changes_it(folder: Path) -> None:
    before = target_identity(str(folder))
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][3] = torch.nextafter(
        weights["model.norm.weight"][3], torch.tensor(9.0)
    )
    save_file(weights, path, {"format": "pt"})
    after = target_identity(str(folder))
    assert after.weights_sha256 != before.weights_sha256
    assert after.config_sha256 == before.config_sha256


def test_config_and_tokenizer_change_it(folder: Path) -> None:
    before = target_identity(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "5.99"}))
    assert target_identity(str(folder)) == before
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert target_identity(str(folder)).config_sha256 != before.config_sha256
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert target_identity(str(folder)).tokenizer_sha256 != before.tokenizer_sha256


def test_damaged_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-10], whole + b"0", b"\xff" * 8 + whole[8:], b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=r"model\.safetensors"):
            target_identity(str(folder))


def test_no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        target_identity(str(folder))


def test_a_lone_shard_is_the_whole(folder: Path) -> None:
    before = target_identity(str(folder))
    lone = folder / "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(lone)
    assert target_identity(str(folder)) == before
    config = DumpConfig(target=str(folder), data=("-",), out="-", device="cpu")
    head = HfBackend(config, (1,)).model.get_output_embeddings().weight
    assert torch.equal(head, load_file(lone)["lm_head.weight"])


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("consolidated.safetensors", "under other names than transformers'"),
        (
            "model-00001-of-00002.safetensors",
            r"model\.safetensors\.index\.json.* is missing: fetch",
        ),
        ("weights.safetensors", r"rename it to model\.safetensors"),
        ("pytorch_model.bin", "convert the weights to safetensors"),
    ],
)
def test_weights_under_another_name(folder: Path, name: str, advice: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ConfigError, match=f"no model.safetensors; .*{advice}"):
        target_identity(str(folder))


def header(tensors: object) -> bytes:
    """A safetensors file of 8 bytes of data."""
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 2]}}),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 8]}}),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]}}),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 10**30]}}),
        header({"a": 3}),
        header([]),
        header(b'{"a":' * 5000),
    ],
)
def test_headers_that_do_not_fit(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        target_identity(str(folder))


@contextmanager
def without_rights() -> Iterator[None]:
    """As a user who owns nothing; root may read everything else."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["", "config.json", "model.safetensors", "tokenizer.json"])
def test_missing_rights(folder: Path, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    (folder / "tokenizer.json").write_text("{}")
    # Nobody else may look into pytest's folders, of which a process of xdist has one more.
    base = tmp_path_factory.getbasetemp()
    own = [path for path in (base, *base.parents) if path.name.startswith(("pytest-", "popen-"))]
    for path in (*own, *(path for path in folder.parents if base in path.parents), folder):
        path.chmod(path.stat().st_mode | 0o055)
    config = DumpConfig(target=str(folder), data=("-",), out="-", device="cpu")
    target_identity(str(folder))
    HfBackend(config, (1,))  # whatever is imported as it is needed is there from now on
    (folder / name).chmod(0)
    with without_rights(), pytest.raises(StoreError, match="Permission denied"):
        target_identity(str(folder))
    if name == "tokenizer.json":
        with without_rights(), pytest.raises(StoreError, match="Permission denied"):
            load_tokenizer(folder)
    elif not name:
        with without_rights(), pytest.raises(StoreError, match="Permission denied"):
            tokenizer_files(folder)
    else:
        with without_rights(), pytest.raises(StoreError, match="Permission denied"):
            HfBackend(config, (1,))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        local_folder(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        local_folder(str(tmp_path))


@contextmanager
def hub_that_answers(status: int) -> Iterator[str]:
    """The address of a server that has this status for every request."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("target", "status", "error", "says"),
    [
        ("ghost/model", 404, ConfigError, "nor a model that the hub gives"),
        ("ghost/model", 401, ConfigError, "nor a model that the hub gives"),
        ("ghost/model", 503, StoreError, "when it answers, or from the folder"),
        ("ghost/model", None, StoreError, "when it answers, or from the folder"),
        ("no/model/id", None, ConfigError, "nor a model that the hub gives"),
    ],
)
def test_what_the_hub_has_not_and_a_hub_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    status: int | None,
    error: type[SpecpipeError],
    says: str,
) -> None:
    refused = nullcontext("http://127.0.0.1:9")
    with refused if status is None else hub_that_answers(status) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
        with pytest.raises(error, match=f"{target}.*{says}"):
            local_folder(target)


def test_a_hub_that_is_not_to_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that comes back by itself: HF_HUB_OFFLINE=1, and the model is not in the cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="neither a local folder nor a model that the hub gives"):
        local_folder("ghost/model")
