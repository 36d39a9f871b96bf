"""The claim of a folder by a dump's identity (dump.json); a folder of another dump is refused."""

from importlib.metadata import version
from typing import Any

from specpipe.schemas.errors import IdentityError
from specpipe.schemas.records.checkpoint import PROVENANCE_FILE
from specpipe.schemas.records.dump import (
    AUX_SCALES_FILE,
    DUMP_FILE,
    INDEX_FILE,
    REJECTED_FILE,
    TARGET_FOLDER,
    VOCAB_FILE,
    DumpHeader,
    DumpIdentity,
)
from specpipe.stages.dump_plan.stamp import STAMP_FILE
from specpipe.stages.runs.folder import OUTPUTS
from specpipe.stages.storage.records import parse_header
from specpipe.stages.storage.store.folder import Folder

# Where the target lay does not change what it is.
_FREE_FIELDS = ("target.name", "target.revision")

_WRITTEN = (
    TARGET_FOLDER,
    "plan",
    "shards",
    INDEX_FILE,
    VOCAB_FILE,
    REJECTED_FILE,
    AUX_SCALES_FILE,
    PROVENANCE_FILE,
)
_OTHERS = tuple(name for name in OUTPUTS if name != DUMP_FILE)
"""Of runs and searches, which refuse a folder that holds a dump."""


def check_unclaimed(folder: Folder) -> None:
    """Raise IdentityError where files that are no dump's stand where a dump would write its own, or
    a run or a search has the folder."""
    if _is_a_dump(folder):
        return
    existing = [name for name in _WRITTEN + _OTHERS if folder.exists(name) or folder.list(name)]
    # Another worker may have begun meanwhile: it wrote dump.json before any of these.
    if existing and not _is_a_dump(folder):
        raise IdentityError(
            f"{folder.url} already has {', '.join(existing)}, which no dump wrote (it has no "
            f"{DUMP_FILE}); choose another --out, or move that away"
        )


def read_claim(folder: Folder) -> DumpIdentity | None:
    """The identity that dump.json holds; None where there is no dump yet."""
    if not folder.exists(DUMP_FILE):
        return None
    return parse_header(folder.read(DUMP_FILE), folder.where(DUMP_FILE)).identity


def claimed_identity(folder: Folder, identity: DumpIdentity) -> DumpIdentity | None:
    """The identity that dump.json holds; None where there is no dump yet.

    Raises IdentityError, naming the fields that differ, where it is of something else.
    """
    claimed = read_claim(folder)
    if claimed is None:
        return None
    there, here = _flat(claimed), _flat(identity)
    differing = [
        f"{name} ({_short(there.get(name))} there, {_short(here.get(name))} now)"
        for name in sorted({*there, *here})
        if name not in _FREE_FIELDS and there.get(name) != here.get(name)
    ]
    if differing:
        begun = "" if folder.list("shards") else " (nothing of it is dumped yet)"
        raise IdentityError(
            f"{folder.url} holds a dump of something else{begun}: {', '.join(differing)}; choose "
            "another --out, or remove that dump if nobody works on it"
        )
    return claimed


def claim(folder: Folder, identity: DumpIdentity) -> DumpIdentity:
    """Write dump.json, unless it is there; returns the identity that counts.

    It comes before the plan and every other file, so that files of two inputs never mix: whoever
    finds it with another identity is refused.
    """
    header = DumpHeader(
        identity=identity,
        fingerprint=identity.fingerprint,
        specpipe_version=version("specpipe"),
    )
    folder.create(DUMP_FILE, header.to_json())
    return claimed_identity(folder, identity) or identity


def _is_a_dump(folder: Folder) -> bool:
    # One whose dump.json was removed for being damaged still has its stamp.
    return folder.exists(DUMP_FILE) or folder.exists(STAMP_FILE)


def _flat(identity: DumpIdentity) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in identity.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": of for inner, of in value.items()}
        else:
            flat[name] = value
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
