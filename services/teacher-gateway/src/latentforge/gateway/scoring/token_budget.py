"""Bounds how many tokens are worked on at one time."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class TokenBudget:
    """Lets holders in, in order, while their tokens fit the limit; one that exceeds the limit is let in alone."""

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
