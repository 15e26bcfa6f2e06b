"""Texts of one length in the serving engine, read once and then stepped as often as a figure wants."""

import time
from collections.abc import Callable, Sequence

from latentforge.model.decoding.build import batch_decoding
from latentforge.model.decoding.slot_decoding import PIECE_CHUNKS
from latentforge.model.engine.engine import Engine
from latentforge.model.engine.limits import EngineLimits
from latentforge.model.engine.requests import GenerationRequest
from latentforge.model.engine.ticket import EngineEvent
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams
from latentforge.model.token_level import TokenLevelModel


class LongTexts:
    """The texts of one model, all stepped together as a server's engine does it; none ends by itself."""

    def __init__(
        self,
        model: LatentModel | TokenLevelModel,
        prompts: Sequence[Sequence[int]],
        room: int,
        params: SamplingParams,
    ) -> None:
        """Takes the memory and submits the requests; nothing is read yet.

        Args:
            model: that writes them.
            prompts: ids, all of one length, a multiple of K.
            room: tokens that each will be continued by at most.
            params: how tokens are drawn.
        """
        k, num = model.chunk_size, len(prompts)
        self._chunk_size, self._num = k, num
        self._tokens = num * len(prompts[0])
        self._decoding = batch_decoding(model, num, max_tokens=len(prompts[0]) + room)
        # One piece of every text an iteration: so all are read at the same time, and none steps before the last is.
        self._engine = Engine(EngineLimits(queue_limit=num, queue_tokens=2**62, prefill_tokens=num * PIECE_CHUNKS * k))
        self._failures: list[Exception] = []
        for ids in prompts:
            request = GenerationRequest(self._decoding, ids, room, params)
            self._engine.submit(request, self._listen, float("inf"))

    @property
    def cache_bytes(self) -> int:
        """Memory that was taken for keys and values."""
        return self._decoding.cache_bytes

    def read(self, on_share: Callable[[float], None] = lambda share: None) -> None:
        """Reads all prompts and writes one chunk behind each; tells how much of them is read."""
        while not self._engine.tokens_drawn:
            self._advance()
            on_share(self._engine.prompt_tokens_read / self._tokens)

    def pace(self, new_tokens: int) -> float:
        """Tokens per second of all texts while each gets so many, a multiple of K."""
        before = self._engine.tokens_drawn
        started = time.perf_counter()
        for _ in range(new_tokens // self._chunk_size):
            self._advance()
        seconds = time.perf_counter() - started
        written = self._engine.tokens_drawn - before
        assert written == self._num * new_tokens
        return written / seconds

    def _advance(self) -> None:
        self._engine.run_once()
        if self._failures:
            raise self._failures[0]

    def _listen(self, event: EngineEvent) -> None:
        if isinstance(event, Exception):
            self._failures.append(event)
