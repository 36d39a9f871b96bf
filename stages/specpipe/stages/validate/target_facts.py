"""Facts of a dump's target that an artifact must agree with."""

from specpipe.stages.drafters.artifact_format import TargetFacts
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.verifier_head import longest_text


def target_facts(dump: Dump) -> TargetFacts:
    target = dump.identity.target
    return TargetFacts(
        architecture=target.architecture,
        hidden_size=target.hidden_size,
        vocab_size=target.vocab_size,
        num_layers=target.num_layers,
        max_position_embeddings=longest_text(dump.target_file),
    )
