"""A loaded target that makes shards; any number of workers may share a dump."""

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.dump import TARGET_FOLDER, ShardManifest
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.calibrate import dump_scales
from specpipe.stages.dump.generated_text import GeneratedText
from specpipe.stages.dump.shard import LoadedTarget, write_shard
from specpipe.stages.dump_plan.prepared import Prepared
from specpipe.stages.process.activity import doing
from specpipe.stages.storage.committed import committed_shard
from specpipe.stages.storage.shard.samples import PlannedSample
from specpipe.stages.storage.store.objects import put_object
from specpipe.stages.target.files.location import CONFIG_FILE, tokenizer_files
from specpipe.stages.target.head.last_layer import save_last_layer
from specpipe.stages.target.head.mtp_layer import save_mtp
from specpipe.stages.target.head.verifier_head import VerifierHead
from specpipe.stages.target.open_backend import open_backend
from specpipe.stages.target.proof import ProofSample, prove, prove_generation
from specpipe.stages.text.conversation import ChatTemplate
from specpipe.stages.text.rejected import Rejections

CHECK_SAMPLES = 4
"""Samples of each worker that are compared with the target's own word."""


class Worker:
    """One engine, its head, and the losses of its own shards.

    Opening it writes `target/` where that is missing or damaged, and compares a few samples with
    the target's own word: it raises ValidationError where they differ.
    """

    def __init__(
        self,
        config: DumpConfig,
        prepared: Prepared,
        first: int,
        check_samples: int = CHECK_SAMPLES,
    ) -> None:
        """The first `check_samples` samples of shard `first`, and at least one, are compared."""
        self._config = config
        self._prepared = prepared
        self._rejections = Rejections(config.max_rejected)
        self._template = ChatTemplate(
            prepared.target_folder,
            settings=config.chat_template_kwargs,
            trust_remote_code=config.trust_remote_code,
        )
        longest = max(sample.size for shard in prepared.plan for sample in shard)
        self._backend = open_backend(config, prepared.identity, longest)
        try:
            doing("writing the target's head into the dump")
            self._head = self._open_head()
            self._scales = dump_scales(prepared, self._backend)
            samples = prepared.plan[first][: max(1, check_samples)]
            doing("comparing samples with the target's own word")
            prove(self._backend, self._head, list(_to_prove(samples)))
            if config.generate is not None:
                prompts = [
                    GeneratedText(sample, config.generate, self._template).prompt
                    for sample in samples
                ]
                doing("comparing text that the target writes with its own word")
                prove_generation(self._backend, prompts, config.generate)
        except BaseException:
            self._backend.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._backend.close()

    def make(self, shard_id: int, advance: Callable[[int], None]) -> ShardManifest:
        """Capture and commit a shard, unless it is committed by now; the manifest that counts.

        `advance` takes the tokens that are done. Raises InputError where more samples than
        `max_rejected` have no usable states.
        """
        prepared = self._prepared
        committed = committed_shard(prepared.folder, shard_id, prepared.identity.fingerprint)
        if committed is not None:
            advance(sum(sample.size for sample in prepared.plan[shard_id]))
            return committed
        if self._config.generate is None:  # else the backend says how much is written
            doing("running the target")
        return write_shard(
            prepared,
            shard_id,
            LoadedTarget(self._backend, self._head, self._scales, self._template),
            self._config,
            refuse=lambda sample, reason: self._rejections.lose(sample.source, reason),
            progress=advance,
        )

    def _open_head(self) -> VerifierHead:
        """Write all that training needs of the target, and read its head from there."""
        prepared = self._prepared
        target, source = prepared.folder.child(TARGET_FOLDER), prepared.target_folder
        for path in [source / CONFIG_FILE, *tokenizer_files(source)]:
            put_object(target, path.name, path.read_bytes())
        self._backend.save_head(target)
        save_mtp(source, target)
        save_last_layer(source, target)
        head = VerifierHead.load(target.read, self._backend.device)
        vocab_size = prepared.identity.target.vocab_size
        if len(head.lm_head_VH) != vocab_size:
            raise ConfigError(
                f"the target's lm_head has {len(head.lm_head_VH)} rows, its config says a "
                f"vocabulary of {vocab_size}"
            )
        return head


def _to_prove(samples: Sequence[PlannedSample]) -> Iterator[ProofSample]:
    for sample in samples:
        # Of a prompt whose answer is not written yet, any token will do.
        mask = sample.loss_mask if sample.num_rows else np.ones_like(sample.loss_mask)
        if mask[1:].any():
            yield ProofSample.cut(sample.sample_id, sample.input_ids, mask)
