"""Whether a server is still the teacher that the gateway met at its start; what to compare differs between servers.

What a TCP connection leads to does not change, so each new one is a reason to look again, and so is each try that
failed, since a proxy's connections outlive what is behind it. Weights are in no list: the log-probabilities of one text
tell them apart.
"""

import asyncio
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from latentforge.gateway.backends.base import BackendError, FailureKind, TokenIds
from latentforge.gateway.backends.upstream import Api
from latentforge.gateway.settings import shown_url
from latentforge.text.tokenizer import TextTokenizer

T = TypeVar("T")

# Nats by which the log-probability of the witness's tokens may differ on average, batches and rounding being what they
# are. SmolLM2-135M in bfloat16 differs from itself in float32 by 0.03; with noise of a twentieth of its weights by 0.5.
_MOST_DRIFT = 0.2
# Below it a difference says nothing.
_LEAST_LOGPROB = -30.0
# Ordinary, in words and in code: where a text surprises a model, rounding alone is worth nats.
_WITNESS = (
    "The quick brown fox jumps over the lazy dog. In 1969, people walked on the moon for the first time.\n"
    "import os\n\ndef main(path):\n    for name in os.listdir(path):\n        print(name)\n"
)
# Failures that tell nothing of whose they are.
_NO_ANSWER = (FailureKind.GONE, FailureKind.TOO_SLOW, FailureKind.BUSY, FailureKind.CHANGED)


def digest(*parts: str) -> str:
    """16 hex digits over parts that cannot run into each other."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Witness:
    """A text by which weights are known: uint32 ids [n], n > 1, and log-probabilities of ids 1 … n−1, float32 [n−1]."""

    token_ids: TokenIds
    logprobs: NDArray[np.float32]

    @classmethod
    def of(cls, token_ids: TokenIds, logprobs: NDArray[np.float32]) -> "Witness":
        return cls(token_ids, np.maximum(logprobs, _LEAST_LOGPROB))

    def drift(self, other: "Witness") -> float:
        """Mean absolute difference in nats."""
        return float(np.abs(self.logprobs - other.logprobs).mean())


def witness_ids(tokenizer: TextTokenizer, longest: int) -> TokenIds:
    """The witness's ids, at most ``longest``."""
    return np.array(tokenizer.begin(tokenizer.encode(_WITNESS))[: max(2, longest)], np.uint32)


class Identity(ABC):
    """Knows when to compare a server with the one that was met, and believes no answer before that.

    Args:
        api: the server.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._is_met = False
        # Reasons for doubt that were seen, and those of them that a comparison has come after.
        self._seen = self._confirmed = 0
        self._comparison: asyncio.Task[None] | None = None

    def doubt(self) -> None:
        """A connection was opened, or a try failed: what answers from here on may be another server than before."""
        self._seen += 1

    async def believed(self, asking: Awaitable[T]) -> T:
        """An answer of the teacher that was met, and of no other that took its place.

        Raises:
            BackendError: it failed, or comes from another teacher (CHANGED).
        """
        try:
            answer = await asking
        except BackendError as error:
            if error.kind not in _NO_ANSWER:
                # Another server may refuse what the first one took.
                await self.confirm()
            raise
        await self.confirm()
        return answer

    async def confirm(self) -> None:
        """Before an answer is believed: compares, unless that was done since there was a reason for doubt.

        Raises:
            BackendError: it is another teacher (CHANGED), or does not say.
        """
        needed = self._seen
        while self._is_met and self._confirmed < needed:
            if self._comparison is None:
                self._comparison = asyncio.create_task(self._compare_once(self._seen))
                # All who wait have its failure, or have left.
                self._comparison.add_done_callback(lambda task: task.cancelled() or task.exception())
            # One for all who wait, and its failure is everybody's; whoever leaves takes it from nobody.
            await asyncio.shield(self._comparison)

    async def close(self) -> None:
        if (comparison := self._comparison) is not None:
            comparison.cancel()
            await asyncio.gather(comparison, return_exceptions=True)

    @abstractmethod
    async def _compare(self) -> None:
        """
        Raises:
            BackendError: the server is another teacher than was met (CHANGED), or does not say.
        """

    def _begin(self) -> None:
        """What answers now is the teacher that was met."""
        self._confirmed = self._seen
        self._is_met = True

    async def _witnessed(self, scoring: Awaitable[T]) -> T:
        """What comes of scoring the witness, which the teacher that was met did not refuse."""
        try:
            return await scoring
        except BackendError as error:
            if error.kind is not FailureKind.REFUSED:
                raise
            raise self._changed(f"it refuses a text that it scored then ({error})") from None

    def _check_witness(self, met: Witness, scored: Witness, same: str) -> None:
        """Refuses other weights; ``same`` is what did not tell them apart."""
        drift = met.drift(scored)
        if not drift <= _MOST_DRIFT:
            raise self._changed(
                f"{same}, but the log-probabilities of one text differ by {drift:.2f} nats on average, where "
                f"{_MOST_DRIFT} is the most that rounding explains"
            )

    def _changed(self, what: str) -> BackendError:
        where = f"{self._api.url_setting}={shown_url(self._api.base_url)}"
        return BackendError(
            f"{where} is another teacher than at the gateway's start: {what}; have it serve the first one again, or "
            "restart the gateway to serve the new one",
            FailureKind.CHANGED,
        )

    async def _compare_once(self, covers: int) -> None:
        """The one comparison for all that was seen up to ``covers``."""
        try:
            await self._compare()
            self._confirmed = max(self._confirmed, covers)
        finally:
            self._comparison = None
