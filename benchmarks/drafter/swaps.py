"""Checkpoints published while texts are written, some of them bad: is a text wrong, or a bad one used?"""

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.drafter.differences import Difference, differences, judged
from benchmarks.drafter.engines import VllmEngine
from benchmarks.drafter.republishing import CHANGES, SPOILS, republished

# Whoever looks for checkpoints sees every one of them.
SECONDS_APART = 6.0
_TAKEN_WITHIN = 120.0


@dataclass(frozen=True)
class SwapFindings:
    """What came of it.

    Attributes:
        published: checkpoints, the first one not counted.
        bad: names of those that must not be used, and what is wrong with each.
        drafters: that drafted, in order.
        texts: that were written meanwhile.
        wrong: texts that are not the teacher's own, ties apart.
        ties: those that parted where the teacher was of two minds.
    """

    published: int
    bad: dict[str, str]
    drafters: list[str]
    texts: int
    wrong: int
    ties: int

    @property
    def bad_used(self) -> list[str]:
        return [name for name in self.drafters if name in self.bad]

    @property
    def said(self) -> dict[str, Any]:
        return {**asdict(self), "bad_used": self.bad_used}


class SwapPublisher(threading.Thread):
    """Publishes checkpoints one after the other, bad ones among them.

    Args:
        checkpoint: whose weights they are.
        root: the checkpoints folder.
        scratch: where they are made.
        num: how many; the last one is good.
    """

    def __init__(self, checkpoint: Path, root: Path, scratch: Path, num: int) -> None:
        super().__init__(name="publisher", daemon=True)
        self._checkpoint, self._root, self._scratch = checkpoint, root, scratch
        kinds = [*CHANGES, *SPOILS]
        # Spread over all of them, and none at the end.
        self._bad = {1 + at * (num - 2) // len(kinds): kind for at, kind in enumerate(kinds)}
        self.num = num
        self.bad: dict[str, str] = {}
        self.last = ""
        self.error: OSError | ValueError | None = None

    def run(self) -> None:
        try:
            for number in range(self.num):
                time.sleep(SECONDS_APART)
                self._publish(self._bad.get(number))
        except (OSError, ValueError) as error:
            self.error = error

    def _publish(self, kind: str | None) -> None:
        steps = {"change": CHANGES.get(kind or ""), "spoil": SPOILS.get(kind or "")}
        given = {name: step for name, step in steps.items() if step is not None}
        place = republished(self._checkpoint, self._root, self._scratch, **given)
        name = f"{place.parent.name}/{place.name}"
        if kind is None:
            self.last = name
        else:
            self.bad[name] = kind


def swaps(
    engine: VllmEngine,
    alone: VllmEngine,
    ids: Sequence[Sequence[int]],
    new_tokens: int,
    publisher: SwapPublisher,
    dtype: str,
) -> SwapFindings:
    """Has an engine write all the while that checkpoints are published, and until it drafts with the last good one.

    Raises:
        TimeoutError: it does not take it.
        OSError, ValueError: what the publisher met.
    """
    plain = alone.write(ids, new_tokens).token_ids
    parted: list[Difference] = []
    drafters: list[str] = []
    texts, deadline = 0, 0.0
    publisher.start()
    while publisher.is_alive() or drafters[-1:] != [publisher.last]:
        if publisher.error is not None:
            raise publisher.error
        if not publisher.is_alive():
            deadline = deadline or time.monotonic() + _TAKEN_WITHIN
            if time.monotonic() > deadline:
                raise TimeoutError(f"{drafters[-1:]} drafts still, {_TAKEN_WITHIN:g} s after {publisher.last}")
        written = engine.write(ids, new_tokens)
        drafters += [name for name in written.drafters if name not in drafters[-1:]]
        texts += len(written.token_ids)
        for one in differences(plain, written.token_ids):
            beginning = [*ids[one.prompt], *plain[one.prompt][: one.position]]
            [top] = alone.write([beginning], 1, with_top=True).top
            parted.append(judged(one, top, dtype))
    wrong = sum(one.kind != "tie" for one in parted)
    return SwapFindings(publisher.num, publisher.bad, drafters, texts, wrong, len(parted) - wrong)
