"""Bounds how many tokens are worked on at one time."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class TokenBudget:
    """Lets holders in, in order, while their tokens fit the limit; one that exceeds the limit is let in alone.

    A semaphore that counts tokens. Strictly in order: were smaller holders let past a large one, a steady stream of
    them would keep it out for ever.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def take(self, tokens: int) -> AsyncIterator[None]:
        turn = asyncio.get_running_loop().create_future()
        self._queue.append((tokens, turn))
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled while it was queued, or in the very moment between being let in and running: then its turn has
            # come already, its tokens are counted, and nobody but it can give them back.
            if turn.cancelled():
                self._let_in()
            else:
                self._give_back(tokens)
            raise
        try:
            yield
        finally:
            self._give_back(tokens)

    def _give_back(self, tokens: int) -> None:
        self._held -= tokens
        self._let_in()

    def _let_in(self) -> None:
        # Counted here, where the turn is given, not where the holder runs next: until then others would be let in too.
        while self._queue:
            tokens, turn = self._queue[0]
            if turn.cancelled():
                self._queue.popleft()
            elif self._held == 0 or self._held + tokens <= self._limit:
                self._queue.popleft()
                self._held += tokens
                turn.set_result(None)
            else:
                return
