"""The texts of a shard whose plan holds prompts: the target writes them, turn after turn."""

from collections import deque
from collections.abc import Iterator, Sequence

from specpipe.schemas.settings.stages import GenerateConfig
from specpipe.stages.dump.generated_text import Talk
from specpipe.stages.dump.target_text import Text
from specpipe.stages.storage.shard.samples import PlannedSample
from specpipe.stages.target.backend import Backend
from specpipe.stages.text.conversation import ChatTemplate


def generated_texts(
    backend: Backend,
    samples: Sequence[PlannedSample],
    settings: GenerateConfig,
    template: ChatTemplate,
) -> Iterator[Text]:
    """What the target makes of each planned prompt, in order.

    Its first turn is written for all samples, then the second for those that go on, and so on. The
    states of a conversation that is done are kept until those before it are done too: of all of
    the shard at most, and of a batch where there is one turn.
    """
    talks = [Talk(sample, settings, template) for sample in samples]
    waiting = deque(talks)
    while talks:
        going_on = []
        turns = backend.generate([talk.prompt for talk in talks], settings)
        for talk, turn in zip(talks, turns, strict=True):
            talk.add(turn)
            if not talk.is_done:
                going_on.append(talk)
            while waiting and waiting[0].is_done:
                yield waiting.popleft().text()
            if talk.is_done and waiting:
                talk.keep_states()
        talks = going_on
