"""Whether a vLLM server is still the teacher that the gateway met at its start.

A server keeps its address when it is started anew with another model, and its answers look alike. Compared are the
model's name and path, vLLM's version and configuration (the ``system_fingerprint``, which every answer carries and
which is compared on every answer), and the log-probabilities of one text.
"""

from dataclasses import dataclass, replace

from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.backends.identity import Identity, Witness, digest
from latentforge.gateway.backends.upstream import Api, Upstream
from latentforge.gateway.backends.vllm.answers import ANSWERS, VllmAnswer, prompt_rows
from latentforge.gateway.backends.vllm.model import GREEDY
from latentforge.gateway.backends.vllm.startup import ServedModel, served_now
from latentforge.gateway.breaker import Breaker
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings

_LOOK_SECONDS = 10.0
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


class ServerIdentity(Identity):
    """Compares the server with the teacher that was met.

    Args:
        api: the server.
        settings: say which model is meant.
        timeout: seconds for an answer that may be queued behind others.
    """

    def __init__(self, api: Api, settings: GatewaySettings, metrics: Metrics, *, timeout: float) -> None:
        super().__init__(api)
        self._settings = settings
        # Not behind the requests that it is about.
        impatient = replace(api, attempts=1, timeout=_LOOK_SECONDS)
        self._looks = Upstream(impatient, Breaker.never_opening(), metrics, on_doubt=self.doubt)
        self._scores = Upstream(replace(api, attempts=1, timeout=timeout), Breaker.never_opening(), metrics)
        self._met: ServedTeacher | None = None

    def meet(self, teacher: ServedTeacher, witness: Witness, vocab_size: int) -> None:
        """From now on the server must be this one."""
        self._met, self._witness, self._vocab_size = teacher, witness, vocab_size
        self._begin()

    def check_answer(self, answer: VllmAnswer) -> None:
        """Refuses an answer whose fingerprint is another; may be called in any thread.

        Raises:
            BackendError: CHANGED, with both.
        """
        met, given = self._met, answer.system_fingerprint or ""
        if met is None or given == met.fingerprint:
            return
        self.doubt()
        raise self._changed(f"its answers have the system_fingerprint {given!r}, which was {met.fingerprint!r}")

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
        await super().close()
        await self._looks.close()
        await self._scores.close()

    async def _compare(self) -> None:
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
        scoring = self._scores.post("/v1/completions", lambda: payload, lambda body: ANSWERS.read(body, 1))
        answer = await self._witnessed(scoring)
        self._check_served(*served, answer.system_fingerprint or "")
        rows = prompt_rows(answer.choices[0].prompt_logprobs, witness.token_ids, 1, self._vocab_size)
        scored = Witness.of(witness.token_ids, rows.realised_logprobs)
        self._check_witness(witness, scored, f"it has the name and the configuration of {met}")

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
