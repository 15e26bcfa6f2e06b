"""Scoring for an HTTP request: all of its sequences, or why not."""

from collections.abc import Mapping, Sequence
from contextlib import aclosing

from latentforge.gateway.backends.base import BackendError, TeacherDescription, TokenIds
from latentforge.gateway.http.call import HttpCall
from latentforge.gateway.http.errors import HttpError, http_error_of, invalid
from latentforge.gateway.rpc import validation
from latentforge.gateway.rpc.errors import ApiError, log_teacher_failure, teacher_failed
from latentforge.gateway.scoring.teacher import SequenceAnswer, Teacher
from latentforge.teacher_client.sparse_rows import PackedRows, SparseRows

# An answer is made whole in memory before it is sent.
MAX_ANSWER_BYTES = 128 * 2**20


def check_answer_size(num_bytes: int, param: str, subject: str = "") -> None:
    """Refuses a request whose answer would be too long; ``num_bytes`` is about what it would have.

    ``subject`` says what does that, where it is not ``param`` alone.
    """
    if num_bytes > MAX_ANSWER_BYTES:
        most = MAX_ANSWER_BYTES // 2**20
        raise invalid(
            param,
            f"{subject}makes an answer of about {num_bytes // 2**20} MiB; at most {most} are allowed; ask for less of "
            "each, or send fewer sequences at a time",
        )


def checked_top_k(top_k: int, param: str, about: TeacherDescription) -> int:
    """Entries of the rows to ask for: one where nobody wants any, since rows tell of the realised token, too."""
    if not 0 <= top_k <= about.max_top_k:
        raise invalid(param, f"is {top_k}; allowed are 0 to {about.max_top_k} (MAX_TOP_K)")
    return max(1, top_k)


def checked_ids(ids: Sequence[int], param: str, about: TeacherDescription) -> TokenIds:
    """uint32 [L] of a sequence to score, of 2 tokens or more."""
    check_vocabulary(ids, param, about)
    try:
        return validation.sequence_ids(ids, param, about)
    except ApiError as error:
        raise http_error_of(error) from None


def check_vocabulary(ids: Sequence[int], param: str, about: TeacherDescription) -> None:
    """Refuses ids that the teacher does not have. Takes a thread's time."""
    # The first pass is C's.
    if ids and not (min(ids) >= 0 and max(ids) < about.vocab_size):
        at, wrong = next((at, i) for at, i in enumerate(ids) if not 0 <= i < about.vocab_size)
        raise invalid(f"{param}[{at}]", f"is {wrong}; ids are 0 to {about.vocab_size - 1}")


def check_can_score(about: TeacherDescription) -> None:
    try:
        validation.check_can_score(about)
    except ApiError as error:
        raise http_error_of(error) from None


async def score_all(
    teacher: Teacher, sequences: Mapping[int, TokenIds], top_k: int, call: HttpCall
) -> dict[int, SequenceAnswer]:
    """Float32 rows of every sequence, under its key.

    Raises:
        HttpError: the teacher failed on one, too much is queued, or the caller had his quota; the others are given up.
    """
    answers: dict[int, SequenceAnswer] = {}
    try:
        async with aclosing(teacher.score_many(list(sequences.items()), top_k, "float32")) as scored:
            async for one in scored:
                if one.answer is None:
                    assert one.error is not None
                    raise failed(one.error, one.index if len(sequences) > 1 else None)
                answers[one.index] = one.answer
                call.tokens += len(one.answer.rows) + 1
                call.rows += len(one.answer.rows)
    except BackendError as error:
        raise failed(error) from None
    return answers


def failed(error: BackendError, index: int | None = None) -> HttpError:
    """What a failure of the teacher, which the log is told, is answered with.

    Args:
        index: of the sequence, where there are several.
    """
    log_teacher_failure(error)
    answer = http_error_of(teacher_failed(error))
    if index is not None:
        answer.message += f" (sequence {index})"
    return answer


def unpacked(answer: SequenceAnswer, top_k: int) -> SparseRows:
    """The rows as arrays. Takes a thread's time."""
    rows = answer.rows
    return (rows.unpacked() if isinstance(rows, PackedRows) else rows).narrowed(top_k)
