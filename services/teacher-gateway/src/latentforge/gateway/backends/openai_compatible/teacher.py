"""A server that is asked in the way that was found, and believed while it is the one that was met."""

from collections.abc import Sequence

from latentforge.gateway.backends.base import ContinuationRequest, Piece, TeacherDescription, TokenIds
from latentforge.gateway.backends.continuations import ContinuingBackend
from latentforge.gateway.backends.identity import Witness, witness_ids
from latentforge.gateway.backends.openai_compatible.connection import URL, Connection
from latentforge.gateway.backends.openai_compatible.models import listed_now
from latentforge.gateway.backends.openai_compatible.probing import Found, sglang_weights
from latentforge.gateway.backends.openai_compatible.sglang import SglangTeacher
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.tokenizer import TextTokenizer


class FoundTeacher(ContinuingBackend):
    """
    Args:
        connection: closed by whoever opened it.
        chosen: OPENAI_COMPATIBLE_MODEL.
    """

    def __init__(
        self,
        connection: Connection,
        found: Found,
        description: TeacherDescription,
        tokenizer: TextTokenizer,
        chosen: str | None,
    ) -> None:
        self._connection = connection
        self._found = found
        self._description = description
        self._tokenizer = tokenizer
        self._chosen = chosen

    async def load(self) -> None:
        """From now on the server must be the one that it is."""
        ids = witness_ids(self._tokenizer, self._description.max_sequence_length)

        async def witnesses() -> Witness:
            (rows,) = await self._found.teacher.score([ids], 1)
            return Witness.of(ids, rows.realised_logprobs)

        witness = await witnesses() if self._description.can_score else None
        self._connection.identity.meet(await self._says(), witness, says=self._says, witnesses=witnesses)

    async def score(self, sequences: Sequence[TokenIds], top_k: int) -> list[SparseRows]:
        return await self._connection.identity.believed(self._found.teacher.score(sequences, top_k))

    async def check(self) -> None:
        await self._connection.check()

    async def close(self) -> None:
        """Nothing here is its own."""

    async def _continue(self, request: ContinuationRequest, index: int, seed: int) -> Piece:
        return await self._connection.identity.believed(self._found.teacher.continue_one(request, index, seed))

    async def _says(self) -> str:
        """What tells one server of a teacher from another, as far as it says."""
        looks = self._connection.looks
        listed = await listed_now(looks, URL, self._chosen)
        weights = await sglang_weights(looks) if isinstance(self._found.teacher, SglangTeacher) else ""
        return f"{listed}{f', weights {weights}' if weights else ''}"
