"""What the lossless demo does: one prompt after another by every engine, and a swap while one writes."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.drafter.differences import Difference, differences, judged
from benchmarks.drafter.engines import VllmEngine, WrittenTexts
from benchmarks.drafter.prompts import DrafterPrompt

# A text is written for longer than that, and a drafter looks for checkpoints more often.
_BEFORE_THE_SWAP = 1.0
_SWAPPED_WITHIN = 60.0


@dataclass(frozen=True)
class DemoText:
    """One prompt, and what every way to write made of it.

    Attributes:
        prompt: which.
        ways: by the name of the method; the first drafts nothing.
        parted: where a method's text parts from that one's, None where it does not.
    """

    prompt: DrafterPrompt
    ways: dict[str, WrittenTexts]
    parted: dict[str, Difference | None]


@dataclass(frozen=True)
class TakenSwap:
    """A newer checkpoint taken while a text was written.

    Attributes:
        before, after: which checkpoints drafted.
        parted: where the text parts from the teacher's alone.
    """

    before: str
    after: str
    parted: Difference | None


class LosslessRun:
    """Runs the engines in turns.

    Args:
        engines: by the name of their method; the first drafts nothing.
        ids: of the prompts.
        new_tokens: that a text is continued by.
        dtype: that the teacher computes in.
    """

    def __init__(
        self, engines: Mapping[str, VllmEngine], ids: Sequence[Sequence[int]], new_tokens: int, dtype: str
    ) -> None:
        self._engines, self._new_tokens, self._dtype = engines, new_tokens, dtype
        self.ids = ids

    @property
    def _alone(self) -> VllmEngine:
        return next(iter(self._engines.values()))

    def warm_up(self) -> None:
        """Lets every engine compile what it will need."""
        for engine in self._engines.values():
            engine.write(self.ids[:1], 16)

    def write(self, prompt: DrafterPrompt, ids: Sequence[int]) -> DemoText:
        """A prompt by every engine, one after the other."""
        ways = {name: engine.write([ids], self._new_tokens, forget=True) for name, engine in self._engines.items()}
        plain, *_ = ways.values()
        parted = {name: self._parted(ids, plain, written) for name, written in ways.items() if written is not plain}
        return DemoText(prompt, ways, parted)

    def swap(self, name: str, publish: Callable[[], Path]) -> TakenSwap:
        """Has a newer checkpoint published while an engine writes all prompts at once.

        Args:
            name: of the method.
            publish: makes it visible.

        Raises:
            TimeoutError: the drafter does not take it.
        """
        engine = self._engines[name]
        plain = self._alone.write(self.ids, self._new_tokens)
        before = engine.write(self.ids[:1], 4).drafters[-1]
        with ThreadPoolExecutor(1) as beside:
            writing = beside.submit(engine.write, self.ids, self._new_tokens)
            time.sleep(_BEFORE_THE_SWAP)
            publish()
            written = writing.result()
        deadline = time.monotonic() + _SWAPPED_WITHIN
        after = written.drafters[-1]
        while after == before:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{before} still drafts, {_SWAPPED_WITHIN:g} s after a newer checkpoint was published"
                )
            after = engine.write(self.ids[:1], 4).drafters[-1]
        parted = [
            self._judged(self.ids[one.prompt], plain.token_ids[one.prompt], one)
            for one in differences(plain.token_ids, written.token_ids)
        ]
        wrong = [one for one in parted if one.kind != "tie"]
        return TakenSwap(before, after, next(iter([*wrong, *parted]), None))

    def _parted(self, ids: Sequence[int], plain: WrittenTexts, written: WrittenTexts) -> Difference | None:
        found = differences(plain.token_ids, written.token_ids)
        return self._judged(ids, plain.token_ids[0], found[0]) if found else None

    def _judged(self, ids: Sequence[int], plain: Sequence[int], found: Difference) -> Difference:
        beginning = [*ids, *plain[: found.position]]
        [top] = self._alone.write([beginning], 1, with_top=True).top
        return judged(found, top, self._dtype)
