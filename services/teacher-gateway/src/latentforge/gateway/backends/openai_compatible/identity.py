"""Whether a compatible server is still the one that the gateway met, by what it lists and how it scores."""

from collections.abc import Awaitable, Callable

from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.backends.identity import Identity, Witness


class MetServer(Identity):
    """Compares what the server says now with what it said and, where it scores, the log-probabilities of one text."""

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
        self._begin()

    async def look(self) -> None:
        """
        Raises:
            BackendError: the server does not answer now, or is another teacher.
        """
        await self._compare_said()
        await self.confirm()

    async def _compare(self) -> None:
        await self._compare_said()
        if self._witness is not None:
            scored = await self._witnessed(self._witnesses())
            self._check_witness(self._witness, scored, "it says the same of itself")

    async def _compare_said(self) -> None:
        try:
            now = await self._says()
        except BackendError as error:
            if error.kind is not FailureKind.MISCONFIGURED:
                raise
            raise self._changed(f"{error}; it was {self._said}") from None
        if now != self._said:
            raise self._changed(f"it is {now}, and was {self._said}")
