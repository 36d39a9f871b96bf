"""The texts of a shard whose plan holds prompts: the target writes them, turn after turn."""

from collections import deque
from collections.abc import Iterator, Sequence

from specpipe.schemas.settings.stages import GenerateConfig
from specpipe.stages.dump.generated_text import GeneratedText
from specpipe.stages.dump.target_text import TextWithStates
from specpipe.stages.storage.shard.samples import PlannedSample
from specpipe.stages.target.backend import Backend
from specpipe.stages.text.conversation import ChatTemplate


def generated_texts(
    backend: Backend,
    samples: Sequence[PlannedSample],
    settings: GenerateConfig,
    template: ChatTemplate,
) -> Iterator[TextWithStates]:
    """What the target makes of each planned prompt, in order.

    Its first turn is written for all samples, then the second for those that go on, and so on. The
    states of a conversation that is done are kept until those before it are done too: of all of
    the shard at most, and of a batch where there is one turn.
    """
    texts = [GeneratedText(sample, settings, template) for sample in samples]
    waiting = deque(texts)
    while texts:
        going_on = []
        turns = backend.generate([text.prompt for text in texts], settings)
        for text, turn in zip(texts, turns, strict=True):
            text.add(turn)
            if not text.is_done:
                going_on.append(text)
            while waiting and waiting[0].is_done:
                yield waiting.popleft().text()
            if text.is_done and waiting:
                text.keep_states()
        texts = going_on
