"""Whether the target that an artifact is to be served with is the one that it was made for."""

from collections.abc import Callable

from specpipe.schemas.errors import IdentityError
from specpipe.schemas.records.checkpoint import TargetReference
from specpipe.schemas.records.dump import TargetIdentity
from specpipe.schemas.settings.stages import ServeConfig
from specpipe.stages.target.files.identity import weights_sha256
from specpipe.stages.target.files.location import local_folder, on_this_disk


def check_target(
    target: str,
    made_for: TargetReference | TargetIdentity,
    config: ServeConfig,
    report: Callable[[str], None],
    *,
    to_serve: bool,
) -> None:
    """Compare the weights of `target` with the hash of those that the drafter was trained for.

    Every weight is read once. `to_serve` fetches from the hub what is not on this disk; else a
    target that is not here stays a name, and that is reported. Raises IdentityError where the
    weights differ.
    """
    revision = made_for.revision
    if to_serve:
        folder = local_folder(target, revision, with_code=config.trust_remote_code)
    elif (found := on_this_disk(target, revision)) is None:
        report(f"warning: {target} is not on this disk; its weights are not compared")
        return
    else:
        folder = found
    if weights_sha256(folder) != made_for.weights_sha256:
        raise IdentityError(
            f"{target} is not the target that the drafter was trained for ({made_for.name}):"
            " its weights differ; give the right --target"
        )
