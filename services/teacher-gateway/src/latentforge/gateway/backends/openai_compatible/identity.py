"""Whether a server is still the one that the gateway met at its start.

As for vLLM: what a connection leads to cannot change, so each new one is a reason to look again, at what the server
lists and, where it scores, at the log-probabilities of one text, since weights are in no list.
"""

import asyncio
from collections.abc import Awaitable, Callable

from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.backends.upstream import Api
from latentforge.gateway.backends.vllm.identity import MOST_DRIFT, Witness
from latentforge.gateway.settings import shown_url


class MetServer:
    """Compares what the server says now with what it said.

    Args:
        api: the server.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        # Connections that were opened, and those of them that a comparison has come after.
        self._opened = self._confirmed = 0
        self._lock = asyncio.Lock()
        self._met = False

    def connection_opened(self) -> None:
        """What it leads to may be another server than before."""
        self._opened += 1

    def meet(
        self,
        said: str,
        witness: Witness | None,
        *,
        says: Callable[[], Awaitable[str]],
        witnesses: Callable[[], Awaitable[Witness]],
    ) -> None:
        """From now on the server must be the one that ``said`` so of itself.

        Args:
            witness: None where it cannot score.
            says: asks what it says of itself now.
            witnesses: has the same text scored.
        """
        self._said, self._witness, self._says, self._witnesses = said, witness, says, witnesses
        self._confirmed = self._opened
        self._met = True

    async def confirm(self) -> None:
        """Before an answer is believed: compares, unless that was done since the last connection was opened.

        Raises:
            BackendError: it is another server (CHANGED), or does not say.
        """
        needed = self._opened
        if not self._met or self._confirmed >= needed:
            return
        async with self._lock:
            if self._confirmed >= needed:
                return
            covers = self._opened
            await self.look()
            if self._witness is not None:
                drift = self._witness.drift(await self._witnesses())
                if not drift <= MOST_DRIFT:
                    raise self._changed(
                        f"it says the same of itself, but the log-probabilities of one text differ by {drift:.2f} nats "
                        f"on average, where {MOST_DRIFT} is the most that rounding explains"
                    )
            self._confirmed = max(self._confirmed, covers)

    async def look(self) -> None:
        """
        Raises:
            BackendError: it says something else of itself than it did (CHANGED), or nothing.
        """
        try:
            now = await self._says()
        except BackendError as error:
            if error.kind is not FailureKind.MISCONFIGURED:
                raise
            raise self._changed(f"{error}; it was {self._said}") from None
        if now != self._said:
            raise self._changed(f"it is {now}, and was {self._said}")

    def _changed(self, what: str) -> BackendError:
        where = f"{self._api.url_setting}={shown_url(self._api.base_url)}"
        return BackendError(
            f"{where} is another teacher than at the gateway's start: {what}; have it serve the first one again, or "
            "restart the gateway to serve the new one",
            FailureKind.CHANGED,
        )
