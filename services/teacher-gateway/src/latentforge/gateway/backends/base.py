"""What a teacher is to the rest of the gateway."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.tokenizer import TextTokenizer

# uint32 [length]
TokenIds = NDArray[np.uint32]
# uint32 [length − 1, candidates]: what is asked about at each position but the first
CandidateIds = NDArray[np.uint32]


@dataclass(frozen=True)
class TeacherDescription:
    """What a teacher is and can do.

    Attributes:
        revision: tells two sets of weights under one model name apart.
        engine: the software that computes, with versions, device and dtype.
        compute_dtype: dtype of the weights while computing; rows of different dtypes are not the same rows.
        vocab_size: width of the output layer; ids are smaller.
        chat_prompts_only: it continues chats, but no text and no token ids.
        max_text_bytes: of UTF-8 of a text or chat that is tokenised, where that is set.
        batches_at_once: batches to be scored that it is given at one time; what computes one after another has no use
            for more, and whoever waits would wait for them.
    """

    backend: str
    model: str
    revision: str
    quantization: str
    engine: str
    compute_dtype: str
    can_score: bool
    can_generate: bool
    max_top_k: int
    max_sequence_length: int
    vocab_size: int
    tokenizer_fingerprint: str
    logprobs_mode: pb.LogprobsMode.ValueType = pb.LOGPROBS_MODE_RAW
    id_fidelity: pb.IdFidelity.ValueType = pb.ID_FIDELITY_EXACT
    chat_prompts_only: bool = False
    max_text_bytes: int | None = None
    batches_at_once: int = 64
    can_score_candidates: bool = False


@dataclass(frozen=True)
class CandidateRows:
    """Rows of one sequence, and float32 [rows, candidates], ln p of what was asked about; None where nothing was."""

    rows: SparseRows
    logprobs: NDArray[np.float32] | None


@dataclass(frozen=True)
class ContinuationRequest:
    """A validated request for continuations. ``top_k`` 0 asks for no rows; ``seed`` None draws one.

    ``chat`` holds (role, content) pairs where the prompt was given as a chat; ``prompt_ids`` is then the rendered chat.
    ``end_ids`` end a continuation besides the model's own end-of-text: an assistant's turn has an end of its own.
    """

    prompt_ids: TokenIds
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    n: int
    top_k: int
    stop: tuple[str, ...]
    chat: tuple[tuple[str, str], ...] = ()
    end_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Piece:
    """The next tokens of one continuation, with their rows if rows were asked for.

    An end-of-text token and the tokens of a stop string are among ``token_ids``; ``text`` ends before them, and may lag
    behind the tokens while characters are incomplete or could begin a stop string.
    """

    index: int
    token_ids: list[int]
    text: str
    rows: SparseRows | None
    finish_reason: pb.FinishReason.ValueType
    detail: str = ""


class Backend(Protocol):
    """One teacher. Every method may be called from the event loop at any time after ``load``."""

    @property
    def description(self) -> TeacherDescription: ...

    @property
    def tokenizer(self) -> TextTokenizer: ...

    @property
    def spent_usd(self) -> float:
        """What its answers cost since it was made, at list price; 0 for a teacher that nobody charges for."""

    async def load(self) -> None:
        """Makes the teacher ready.

        Raises:
            BackendError: it cannot be, and why.
        """

    async def score(self, sequences: Sequence[TokenIds], top_k: int) -> list[SparseRows]:
        """Rows for tokens 1 … L−1 of each sequence, with ``top_k`` entries. The ids were validated.

        Raises:
            BackendError: the teacher failed.
        """

    async def score_candidates(
        self, sequences: Sequence[TokenIds], top_k: int, candidates: Sequence[CandidateIds | None]
    ) -> list[CandidateRows]:
        """As :meth:`score`, and what the teacher says of candidates; only where the description says that it can.

        Raises:
            BackendError: the teacher failed, or cannot.
        """

    def generate(self, request: ContinuationRequest) -> AsyncIterator[Piece]:
        """Continuations of a prompt, interleaved; the last piece of each has a finish reason.

        Raises:
            BackendError: the teacher failed.
        """

    async def check(self) -> None:
        """Nothing where the teacher would answer now, and is the one that was loaded. Asked every few seconds.

        Raises:
            BackendError: it would not, and why.
        """

    async def close(self) -> None: ...


class LoadedBackend:
    """What a backend has once it is loaded: ``load`` sets both attributes."""

    _description: TeacherDescription
    _tokenizer: TextTokenizer

    @property
    def spent_usd(self) -> float:
        return 0.0

    @property
    def description(self) -> TeacherDescription:
        return self._description

    @property
    def tokenizer(self) -> TextTokenizer:
        return self._tokenizer

    async def check(self) -> None:
        """What is loaded into this process stays as it is."""

    async def score_candidates(
        self, sequences: Sequence[TokenIds], top_k: int, candidates: Sequence[CandidateIds | None]
    ) -> list[CandidateRows]:
        raise BackendError(f"the {self._description.backend} backend says nothing of candidates", FailureKind.REFUSED)


class FailureKind(StrEnum):
    """Why a teacher did not answer, by who can do something about it."""

    REFUSED = "refused"  # the request is one that this teacher does not take
    MISCONFIGURED = "misconfigured"  # the gateway's key, credit or settings
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not found"
    BUSY = "busy"  # limits, ours or the teacher's: later it works
    GONE = "gone"  # it does not answer, or answers that it cannot now
    TOO_SLOW = "too slow"
    BROKEN = "broken"  # it answers what it must not
    CHANGED = "changed"  # it is another teacher than the one that was loaded


class BackendError(RuntimeError):
    """A teacher that cannot be loaded or failed while answering, and why.

    Attributes:
        kind: what sort of failure it is.
        retry_after: seconds after which to ask again, where that is known.
        one_may_cause: of several sequences one may be what the teacher fails on, and it may answer the others.
    """

    def __init__(
        self,
        message: str,
        kind: FailureKind = FailureKind.BROKEN,
        *,
        retry_after: float | None = None,
        one_may_cause: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after
        self.one_may_cause = one_may_cause or kind in (FailureKind.REFUSED, FailureKind.BROKEN)
