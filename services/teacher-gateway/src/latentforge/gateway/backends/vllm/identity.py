"""Whether a vLLM server is still the teacher that the gateway met at its start.

A server keeps its address when it is started anew with another model, and its answers look alike. What a TCP connection
leads to does not change, so each new one is a reason to look again, and so is each try that failed, since a proxy's
connections outlive what is behind it: at the model's name and path, at vLLM's version and
configuration (the ``system_fingerprint``, which every answer carries and which is compared on every answer), and at the
log-probabilities of one text, because the weights are in none of the others.
"""

import asyncio
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from latentforge.gateway.backends.base import BackendError, FailureKind, TokenIds
from latentforge.gateway.backends.upstream import Api, Upstream
from latentforge.gateway.backends.vllm.answers import VllmAnswer, answer_of, prompt_rows
from latentforge.gateway.backends.vllm.model import GREEDY, digest
from latentforge.gateway.backends.vllm.startup import ServedModel, served_now
from latentforge.gateway.breaker import Breaker
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings, shown_url
from latentforge.text.tokenizer import TextTokenizer

_LOOK_SECONDS = 10.0
# Nats by which the log-probability of the witness's tokens may differ on average, batches and rounding being what they
# are. SmolLM2-135M in bfloat16 differs from itself in float32 by 0.03; with noise of a twentieth of its weights by 0.5.
MOST_DRIFT = 0.2
# Below it a difference says nothing.
_LEAST_LOGPROB = -30.0
# Ordinary, in words and in code: where a text surprises a model, rounding alone is worth nats.
_WITNESS = (
    "The quick brown fox jumps over the lazy dog. In 1969, people walked on the moon for the first time.\n"
    "import os\n\ndef main(path):\n    for name in os.listdir(path):\n        print(name)\n"
)
# What a server says that is there and well, but hides this path.
_HIDDEN = (FailureKind.NOT_FOUND, FailureKind.REFUSED, FailureKind.FORBIDDEN, FailureKind.MISCONFIGURED)


@dataclass(frozen=True)
class ServedTeacher:
    """What a server says of the teacher that it serves.

    Attributes:
        version: vLLM's.
        fingerprint: what it calls its configuration.
        salt: VLLM_REVISION.
    """

    model: ServedModel
    version: str
    fingerprint: str
    salt: str

    @property
    def revision(self) -> str:
        return digest(self.model.name, self.model.root, self.version, self.fingerprint, self.salt)

    def __str__(self) -> str:
        what = f"{self.model.name} of {self.model.root or 'an unknown path'}"
        return f"{self.revision} ({what}, vllm {self.version or 'unknown'}, system_fingerprint {self.fingerprint!r})"


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


class ServerIdentity:
    """Compares the server with the teacher that was met.

    Args:
        api: the server.
        settings: say which model is meant.
        timeout: seconds for an answer that may be queued behind others.
    """

    def __init__(self, api: Api, settings: GatewaySettings, metrics: Metrics, *, timeout: float) -> None:
        self._api, self._settings = api, settings
        # Failures are what is looked for: no breaker may count them. Not behind the requests that it is about, either.
        impatient = replace(api, attempts=1, timeout=_LOOK_SECONDS)
        self._looks = Upstream(impatient, _no_breaker(), metrics, on_doubt=self.doubt)
        self._scores = Upstream(replace(api, attempts=1, timeout=timeout), _no_breaker(), metrics)
        self._met: ServedTeacher | None = None
        # Reasons for doubt that were seen, and those of them that a comparison has come after.
        self._seen = self._confirmed = 0
        self._comparison: asyncio.Task[None] | None = None

    def meet(self, teacher: ServedTeacher, witness: Witness, vocab_size: int) -> None:
        """From now on the server must be this one."""
        self._met, self._witness, self._vocab_size = teacher, witness, vocab_size
        self._confirmed = self._seen

    def doubt(self) -> None:
        """A connection was opened, or a try failed: what answers from here on may be another server than before."""
        self._seen += 1

    def check_answer(self, answer: VllmAnswer) -> None:
        """Refuses an answer whose fingerprint is another; may be called in any thread.

        Raises:
            BackendError: CHANGED, with both.
        """
        met, given = self._met, answer.system_fingerprint or ""
        if met is None or given == met.fingerprint:
            return
        self._seen += 1
        raise self._changed(f"its answers have the system_fingerprint {given!r}, which was {met.fingerprint!r}")

    async def confirm(self) -> None:
        """Before an answer is believed: compares, unless that was done since there was a reason for doubt.

        Raises:
            BackendError: it is another teacher (CHANGED), or does not say.
        """
        needed = self._seen
        while self._met is not None and self._confirmed < needed:
            if self._comparison is None:
                self._comparison = asyncio.create_task(self._compare(self._seen))
                # All who wait have its failure, or have left.
                self._comparison.add_done_callback(lambda task: task.cancelled() or task.exception())
            # One for all who wait, and its failure is everybody's; whoever leaves takes it from nobody.
            await asyncio.shield(self._comparison)

    async def look(self) -> None:
        """
        Raises:
            BackendError: the server does not answer now, or is another teacher.
        """
        try:
            await self._looks.get("/health", lambda body: None)
        except BackendError as error:
            if error.kind not in _HIDDEN:
                raise
            self._check_served(*await self._served())
        await self.confirm()

    async def close(self) -> None:
        if (comparison := self._comparison) is not None:
            comparison.cancel()
            await asyncio.gather(comparison, return_exceptions=True)
        await self._looks.close()
        await self._scores.close()

    async def _compare(self, covers: int) -> None:
        """The one comparison for all that was seen up to ``covers``."""
        try:
            await self._compare_served_and_weights()
            self._confirmed = max(self._confirmed, covers)
        finally:
            self._comparison = None

    async def _compare_served_and_weights(self) -> None:
        served = await self._served()
        met, witness = self._check_served(*served), self._witness
        payload = {
            "model": met.model.name,
            "prompt": [witness.token_ids.tolist()],
            "max_tokens": 1,
            "prompt_logprobs": 1,
            "add_special_tokens": False,
            **GREEDY,
        }
        answer = await self._scores.post("/v1/completions", lambda: payload, lambda body: answer_of(body, 1))
        self._check_served(*served, answer.system_fingerprint or "")
        rows = prompt_rows(answer.choices[0].prompt_logprobs, witness.token_ids, 1, self._vocab_size)
        drift = witness.drift(Witness.of(witness.token_ids, rows.realised_logprobs))
        if not drift <= MOST_DRIFT:
            raise self._changed(
                f"it has the name and the configuration of {met}, but the log-probabilities of one text differ by "
                f"{drift:.2f} nats on average, where {MOST_DRIFT} is the most that rounding explains"
            )

    async def _served(self) -> tuple[ServedModel, str]:
        try:
            return await served_now(self._looks, self._api, self._settings)
        except BackendError as error:
            if error.kind is not FailureKind.MISCONFIGURED or self._met is None:
                raise
            raise self._changed(f"{error}; it was {self._met}") from None

    def _check_served(self, model: ServedModel, version: str, fingerprint: str | None = None) -> ServedTeacher:
        """The teacher that was met, where the server serves it still; ``fingerprint`` None leaves that out."""
        met = self._met
        assert met is not None
        known = met.fingerprint if fingerprint is None else fingerprint
        now = ServedTeacher(replace(model, max_model_len=met.model.max_model_len), version, known, met.salt)
        if now != met:
            raise self._changed(f"its revision is {now}, it was {met}")
        return met

    def _changed(self, what: str) -> BackendError:
        where = f"{self._api.url_setting}={shown_url(self._api.base_url)}"
        return BackendError(
            f"{where} is another teacher than at the gateway's start: {what}; have it serve the first one again, or "
            "restart the gateway to serve the new one",
            FailureKind.CHANGED,
        )


def _no_breaker() -> Breaker:
    return Breaker(1 << 30, 1.0, 1.0)
