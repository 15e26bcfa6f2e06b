"""Asks inference over REST while the trainer publishes, and notes when its answers name another checkpoint."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx
from pydantic import BaseModel

from tools.demo.report import ObservedSwap

_PROMPT = "def main():"


class WatchError(RuntimeError):
    """Inference did not do what it promises."""


class GeneratedText(BaseModel):
    """What the demo reads of an answer of POST /generate."""

    text: str
    checkpoint: str


@dataclass
class InferenceWatch:
    """One inference server of this machine, seen from outside; it is asked past every proxy.

    Attributes:
        swaps: every change of the checkpoint that answers name; the first comes from None.
    """

    url: str
    poll_seconds: float
    seed: int
    swaps: list[ObservedSwap] = field(default_factory=list)
    _next_poll: float = 0.0

    @property
    def checkpoint(self) -> str | None:
        """What the latest answer named."""
        return self.swaps[-1].to if self.swaps else None

    @property
    def seen(self) -> list[str]:
        """Every checkpoint that answered, in order."""
        return [swap.to for swap in self.swaps]

    def is_up(self) -> bool:
        """Whether it answers at all; it is ready only once something is published."""
        try:
            httpx.get(f"{self.url}/health", timeout=5, trust_env=False)
        except httpx.HTTPError:
            return False
        return True

    def is_ready(self) -> bool:
        """Whether it has a checkpoint to answer from."""
        try:
            return httpx.get(f"{self.url}/ready", timeout=30, trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def poll(self) -> bool:
        """Generates from a fixed prompt when it is time to; true when the checkpoint has changed.

        Raises:
            WatchError: a server that was ready has stopped answering.
        """
        if time.monotonic() < self._next_poll:
            return False
        self._next_poll = time.monotonic() + self.poll_seconds
        if not self.swaps and not self.is_ready():
            return False
        return self._note(self.generate(_PROMPT, max_tokens=16, temperature=0.0))

    def generate(self, prompt: str, **parameters: float) -> GeneratedText:
        """One answer of POST /generate.

        Raises:
            WatchError: it is no answer.
        """
        body = {"prompt": prompt, "seed": self.seed, **parameters}
        try:
            answer = httpx.post(f"{self.url}/generate", json=body, timeout=120, trust_env=False)
        except httpx.HTTPError as error:
            raise WatchError(f"{self.url}/generate did not answer: {error!r}") from None
        if answer.status_code != httpx.codes.OK:
            raise WatchError(f"{self.url}/generate answered {answer.status_code}: {answer.text[:500]}")
        return GeneratedText.model_validate_json(answer.content)

    def _note(self, answer: GeneratedText) -> bool:
        if answer.checkpoint == self.checkpoint:
            return False
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self.swaps.append(ObservedSwap(from_=self.checkpoint, to=answer.checkpoint, at=at))
        return True
