"""From texts as they grow to drafts of what comes next."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from latentforge.drafter.known_texts import KnownText, TokenIds, recognised
from latentforge.drafter.lookup import Lookups
from latentforge.drafter.steps import GoneOn, Least, StepClock
from latentforge.model.chunks import left_pad_count
from latentforge.model.decoding.batch import BatchDecoding, DraftRequest
from latentforge.model.sampling import SamplingParams

# Who drafts: lookups where a text repeats itself and the student elsewhere, or one of them alone.
DraftsFrom = Literal["both", "student", "lookups"]

_GREEDY = SamplingParams(temperature=0)
# What is looked up is drafted in the student's place where at least so many of its tokens are expected to be taken.
_WORTH = 0.5


@dataclass(frozen=True)
class DraftRule:
    """When a draft ends.

    Attributes:
        max_tokens: its longest.
        least_confidence: it ends before the token with which the product of the tokens' chances falls below; None is
            chosen by what passes and drafts are measured to take, see :mod:`latentforge.drafter.speed`, and so is
            whether the student is asked at all, see :mod:`latentforge.drafter.trials`.
        drafts_from: "both" drafts what came the last time where a text repeats itself, see
            :mod:`latentforge.drafter.lookup`, and asks the student elsewhere; "student" and "lookups" are one alone.
        read_tokens: about so many tokens of new texts are read in one call; until all of a text is read it gets none.

    Raises:
        ValueError: one is out of range.
    """

    max_tokens: int = 8
    least_confidence: float | None = None
    drafts_from: DraftsFrom = "both"
    read_tokens: int = 4096

    def __post_init__(self) -> None:
        for name, value in (("max_tokens", self.max_tokens), ("read_tokens", self.read_tokens)):
            if value < 1:
                raise ValueError(f"{name}={value}; set at least 1")
        if self.least_confidence is not None and not 0 <= self.least_confidence <= 1:
            raise ValueError(f"least_confidence={self.least_confidence}; set 0 to 1, or None")


@dataclass
class DrafterCounts:
    """Since the drafter was made.

    Attributes:
        opened: texts that were seen for the first time.
        tokens_read: of texts, pads included.
        drafts: that were not empty.
        drafted: tokens.
        looked_up: drafts that were looked up.
        too_long: times that a text got none because it fills the student's context.
        without_slot: times that a text got none because others had all slots.
    """

    opened: int = 0
    tokens_read: int = 0
    drafts: int = 0
    drafted: int = 0
    looked_up: int = 0
    too_long: int = 0
    without_slot: int = 0


class Drafter:
    """Drafts greedily for many texts at once. Not thread-safe.

    It keeps the state of texts in the decoding's slots, and reads of a text what has come since it was last seen: the
    tokens that the teacher took, and its own. A text is known by its ids, see :mod:`latentforge.drafter.known_texts`;
    one that is seen no more keeps its slot until another needs it, so that a chat's next turn finds the last one.

    Args:
        decoding: of the student; texts that others open in it take slots that this then has not.
        rule: when drafts end.
        clock: gives seconds that never run backwards.

    Attributes:
        counts: what was done.
        steps: what was measured; where the rule names no least confidence, it says when to draft.
        by_student: of each of the last call's texts, whether the student was asked for its draft.
    """

    def __init__(
        self, decoding: BatchDecoding, rule: DraftRule | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.rule = rule or DraftRule()
        self.counts = DrafterCounts()
        self.steps = StepClock(clock)
        self.by_student: list[bool] = []
        self._lookups = Lookups()
        self._decoding = decoding
        self._known: list[KnownText] = []
        self._call = 0

    def draft(self, texts: Sequence[ArrayLike], most: Sequence[int] | None = None) -> list[list[int]]:
        """A draft for each text, possibly empty.

        Args:
            texts: ids of all that is written so far, [L] integers each; every running text at each call, in any order.
            most: for each of them the longest draft; at most ``max_tokens`` of the rule, its default.
        """
        self._call += 1
        every = [np.asarray(ids, np.int64) for ids in texts]
        asked = [self.rule.max_tokens] * len(every) if most is None else most
        found = recognised(every, self._known)
        self.steps.begin(self._gone_on(found, every))
        for one in found:
            if one is not None:
                one.seen = self._call
        known = [self._followed(one, ids) for one, ids in zip(found, every, strict=True)]
        longest = [min(num, self.rule.max_tokens) for num in asked]
        least = self._least(len(every))
        drafts = self._looked_up(known, longest, least)
        self.by_student = [least.student is not None and not draft for draft in drafts]
        if least.student is not None and any(self.by_student):
            self._ask_student(known, longest, least.student, drafts)
        for one, token_ids in zip(known, drafts, strict=True):
            if one is not None:
                one.num_drafted = len(token_ids)
        self.counts.drafts += sum(map(bool, drafts))
        self.counts.drafted += sum(map(len, drafts))
        students = [len(draft) for draft, its in zip(drafts, self.by_student, strict=True) if its]
        self.steps.end(sum(students) if students else None)
        return drafts

    def close(self) -> None:
        """Forgets all texts and frees their slots, so that another drafter can have them."""
        for known in list(self._known):
            self._close(known)

    def _gone_on(self, found: Sequence[KnownText | None], texts: Sequence[TokenIds]) -> GoneOn | None:
        """What the pass that lies behind did; None where it read prompts, or texts that have ended by now."""
        known = [(one, len(ids) - len(one.ids)) for one, ids in zip(found, texts, strict=True) if one is not None]
        num_last = sum(one.seen == self._call - 1 for one in self._known)
        if not known or not len(known) == len(texts) == num_last:
            return None
        if any(one.seen != self._call - 1 or not new for one, new in known):
            return None
        return GoneOn(len(known), sum(1 + one.num_drafted for one, _ in known), sum(new for _, new in known))

    def _followed(self, known: KnownText | None, ids: TokenIds) -> KnownText | None:
        """A text's slot, with all of its whole chunks; None where it has none."""
        if known is None:
            known = self._opened(ids)
            if known is None:
                return None
        num_new = len(ids) - known.num_given
        whole = num_new // self._decoding.chunk_size * self._decoding.chunk_size
        if num_new >= known.text.room:
            self.counts.too_long += 1
            self._close(known)
            return None
        if not self._has_all(ids[known.num_given :]):
            self._close(known)
            return None
        if whole:
            self._decoding.extend(known.text, ids[known.num_given : known.num_given + whole].tolist())
            known.num_given += whole
        new_ids = ids[len(known.ids) :].tolist()
        if known.match is not None and new_ids:
            self._lookups.observe(known.match, new_ids)
        known.index.extend(new_ids)
        known.ids = ids.copy()
        return known

    def _opened(self, ids: TokenIds) -> KnownText | None:
        """A slot for a new text; None where there is none, or none for this one."""
        k = self._decoding.chunk_size
        if len(ids) + left_pad_count(len(ids), k) + k > self._decoding.max_tokens:
            self.counts.too_long += 1
            return None
        if not len(ids) or not self._has_all(ids):
            return None
        if not self._decoding.num_free:
            unseen = [one for one in self._known if one.seen < self._call]
            if not unseen:
                self.counts.without_slot += 1
                return None
            self._close(min(unseen, key=lambda one: one.seen))
        known = KnownText(self._decoding.open(ids.tolist(), _GREEDY), ids.copy(), len(ids), seen=self._call)
        known.index.extend(ids.tolist())
        self._known.append(known)
        self.counts.opened += 1
        return known

    def _has_all(self, ids: TokenIds) -> bool:
        """Whether the student's vocabulary has all of these ids; an engine's output layer may be wider."""
        return bool(((ids >= 0) & (ids < self._decoding.vocab_size)).all())

    def _close(self, known: KnownText) -> None:
        self._known.remove(known)
        self._decoding.close(known.text)

    def _read(self, known: Sequence[KnownText]) -> None:
        left = self.rule.read_tokens
        texts = [one.text for one in known]
        while left > 0 and (num := self._decoding.prefill(texts, left)):
            left -= num
            self.counts.tokens_read += num

    def _least(self, num_texts: int) -> Least:
        may_ask, fixed = self.rule.drafts_from != "lookups", self.rule.least_confidence
        if fixed is None:
            return self.steps.choose(num_texts, may_ask=may_ask)
        return Least(fixed if may_ask else None, fixed)

    def _looked_up(self, known: Sequence[KnownText | None], longest: Sequence[int], least: Least) -> list[list[int]]:
        """For each text what stood behind a place like its end; none where the student is asked instead."""
        drafts: list[list[int]] = [[] for _ in known]
        if self.rule.drafts_from == "student":
            return drafts
        for at, (one, most) in enumerate(zip(known, longest, strict=True)):
            if one is None:
                continue
            one.match = one.index.match(self.rule.max_tokens)
            draft = self._lookups.draft(one.match, most, least.lookup)
            if least.student is None or draft.expected >= _WORTH:
                drafts[at] = draft.token_ids
        self.counts.looked_up += sum(map(bool, drafts))
        return drafts

    def _ask_student(
        self, known: Sequence[KnownText | None], longest: Sequence[int], least: float, drafts: list[list[int]]
    ) -> None:
        """Gives drafts to the texts that have none, and have been read."""
        asked = {at: one for at, one in enumerate(known) if one is not None and self.by_student[at]}
        self._read(list(asked.values()))
        ready = {at: one for at, one in asked.items() if not one.text.num_unread}
        requests = [
            DraftRequest(one.text, one.ids[one.num_given :].tolist(), longest[at], least) for at, one in ready.items()
        ]
        for at, draft in zip(ready, self._decoding.draft(requests), strict=True):
            drafts[at] = draft.token_ids
