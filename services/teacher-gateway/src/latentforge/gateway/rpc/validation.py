"""Requests to arguments that the core may trust, or every reason why not."""

import math
from collections.abc import Sequence

import grpc
import numpy as np

from latentforge.gateway.backends.base import CandidateIds, ContinuationRequest, TeacherDescription, TokenIds
from latentforge.gateway.rpc.errors import ApiError, Violation, invalid_argument, shortened
from latentforge.gateway.rpc.request_size import max_text_bytes
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client import wire
from latentforge.teacher_client.sparse_rows import LogprobDtype
from latentforge.teacher_client.wire import dtype_from_proto
from latentforge.text.chat_template import ROLES
from latentforge.text.errors import ChatError
from latentforge.text.tokenizer import TextTokenizer

MAX_SEQUENCES = wire.MAX_SEQUENCES
MAX_CONTINUATIONS = 64
MAX_STOP_STRINGS = 16
_MAX_TEMPERATURE = 100.0


def check_fingerprint(given: str, teacher: TeacherDescription, *, has_ids: bool = True) -> None:
    """Ids of another tokenizer mean other text; who sends no ids need not know the teacher's."""
    if given != teacher.tokenizer_fingerprint and (given or has_ids):
        raise ApiError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"tokenizer_fingerprint is {shortened(given, 80)!r}, the teacher's is {teacher.tokenizer_fingerprint!r};"
            " tokenise with the teacher's tokenizer and send the fingerprint that GetTeacher gives",
            reason="TOKENIZER_MISMATCH",
        )


def check_revision(given: str, teacher: TeacherDescription) -> None:
    """Rows of two teachers must not become one set of targets."""
    if given and given != teacher.revision:
        raise ApiError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"expected_revision is {shortened(given, 80)!r}, the revision of {shortened(teacher.model, 120)} here is "
            f"{teacher.revision!r}; ask the gateway of the teacher that you expect, or begin anew with this one",
            reason="REVISION_MISMATCH",
        )


def check_can_score(teacher: TeacherDescription) -> None:
    if not teacher.can_score:
        raise ApiError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"the {teacher.backend} backend cannot score given tokens, because its API gives no log-probabilities of a "
            "prompt; call Generate with a chat, which gives rows on the teacher's own text, or choose a "
            "TEACHER_BACKEND that scores: embedded, transformers, vllm-local or vllm-remote, or openai-compatible with "
            "a server that gives them by token id",
            reason="SCORING_UNSUPPORTED",
        )


def check_can_generate(teacher: TeacherDescription) -> None:
    if not teacher.can_generate:
        raise ApiError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"the {teacher.backend} backend cannot continue a prompt with {teacher.model}, which remembers nothing of "
            "the tokens that it has read; call Score with what another teacher wrote",
            reason="GENERATION_UNSUPPORTED",
        )


def row_arguments(
    request: pb.ScoreRequest | pb.ScoreBatchRequest, teacher: TeacherDescription
) -> tuple[int, LogprobDtype]:
    """top_k and the precision of rows; their encoding is checked too."""
    violations = top_k_violations(request.top_k, 1, teacher)
    if request.row_encoding not in pb.RowEncoding.values():
        allowed = f"{pb.ROW_ENCODING_ARRAYS} (arrays) and {pb.ROW_ENCODING_PACKED} (packed)"
        violations.append(Violation("row_encoding", f"is {request.row_encoding}; allowed are {allowed}"))
    try:
        name = dtype_from_proto(request.logprob_dtype)
    except ValueError as error:
        violations.append(Violation("logprob_dtype", str(error)))
    if violations:
        raise invalid_argument(violations)
    return request.top_k, name


def check_number_of_sequences(number: int) -> None:
    if number > MAX_SEQUENCES:
        raise invalid_argument([Violation("sequences", f"has {number}; at most {MAX_SEQUENCES} are allowed")])


def top_k_violations(top_k: int, least: int, teacher: TeacherDescription) -> list[Violation]:
    if least <= top_k <= teacher.max_top_k:
        return []
    return [Violation("top_k", f"is {top_k}; allowed are {least} to {teacher.max_top_k}")]


def sequence_ids(ids: Sequence[int], field: str, teacher: TeacherDescription) -> TokenIds:
    """uint32 [L] of a sequence to be scored: at least a token of context and one to predict."""
    token_ids = np.array(ids, dtype=np.uint32)
    violations = _id_violations(token_ids, field, teacher)
    if not 2 <= len(token_ids) <= teacher.max_sequence_length:
        allowed = f"2 to {teacher.max_sequence_length}"
        violations.insert(0, Violation(field, f"has {len(token_ids)} tokens; allowed are {allowed}"))
    if violations:
        raise invalid_argument(violations)
    return token_ids


def _id_violations(token_ids: TokenIds, field: str, teacher: TeacherDescription) -> list[Violation]:
    beyond = np.flatnonzero(token_ids >= teacher.vocab_size)
    if not len(beyond):
        return []
    at = int(beyond[0])
    return [Violation(f"{field}[{at}]", f"is {token_ids[at]}; ids are 0 to {teacher.vocab_size - 1}")]


def check_one_input(request: pb.ScoreRequest) -> None:
    """What is scored is said once, and special tokens are parsed in text only."""
    kind = request.WhichOneof("input")
    if kind is not None and request.token_ids:
        raise invalid_argument([Violation("token_ids", f"is set, and so is {kind}; send one of them")])
    _check_parses_text(kind or "token_ids", request.parse_special_tokens)


def written_ids(request: pb.ScoreRequest, teacher: TeacherDescription, tokenizer: TextTokenizer) -> TokenIds:
    """uint32 [L] of the text or the chat of a Score request."""
    if request.HasField("chat"):
        return sequence_ids(chat_ids(request.chat, "chat", teacher, tokenizer), "chat", teacher)
    return sequence_ids(tokenizer.begin(text_ids(request, teacher, tokenizer)), "text", teacher)


def candidate_ids(
    candidates: pb.Candidates, field: str, num_rows: int, teacher: TeacherDescription
) -> CandidateIds | None:
    """uint32 [num_rows, m] of what is asked about at each position; None where nothing is."""
    if not candidates.per_row and not candidates.ids:
        return None
    if not 1 <= candidates.per_row <= teacher.max_top_k:
        text = f"is {candidates.per_row}; allowed are 1 to {teacher.max_top_k}"
        raise invalid_argument([Violation(f"{field}.per_row", text)])
    ids = np.array(candidates.ids, dtype=np.uint32)
    if len(ids) not in (candidates.per_row, num_rows * candidates.per_row):
        each = f"{num_rows * candidates.per_row}, {candidates.per_row} for each of {num_rows} rows"
        text = f"has {len(ids)}; allowed are {candidates.per_row} (per_row), the same for every row, or {each}"
        raise invalid_argument([Violation(f"{field}.ids", text)])
    if violations := _id_violations(ids, f"{field}.ids", teacher):
        raise invalid_argument(violations)
    return np.broadcast_to(ids.reshape(-1, candidates.per_row), (num_rows, candidates.per_row))


def check_number_of_candidates(request: pb.ScoreBatchRequest) -> None:
    """Those of a batch go with its sequences by their place."""
    if len(request.candidates) not in (0, len(request.sequences)):
        text = f"has {len(request.candidates)}; allowed are none, or one for each of {len(request.sequences)} sequences"
        raise invalid_argument([Violation("candidates", text)])


def check_can_score_candidates(teacher: TeacherDescription) -> None:
    if not teacher.can_score_candidates:
        raise ApiError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"the {teacher.backend} backend gives no log-probabilities of chosen ids, because what it asks has none; "
            f"leave candidates out and ask for a larger top_k (up to {teacher.max_top_k}), in which ids that matter "
            "mostly are, or choose TEACHER_BACKEND=embedded or transformers",
            reason="CANDIDATES_UNSUPPORTED",
        )


def detokenize_ids(ids: Sequence[int], teacher: TeacherDescription) -> list[int]:
    if len(ids) > teacher.max_sequence_length:
        text = f"has {len(ids)} tokens; at most {teacher.max_sequence_length} are allowed"
        raise invalid_argument([Violation("token_ids", text)])
    if violations := _id_violations(np.array(ids, dtype=np.uint32), "token_ids", teacher):
        raise invalid_argument(violations)
    return list(ids)


def text_ids(
    request: pb.TokenizeRequest | pb.GenerateRequest | pb.ScoreRequest,
    teacher: TeacherDescription,
    tokenizer: TextTokenizer,
) -> list[int]:
    """Ids of a request's text, in which special tokens are parsed where the request says so."""
    _check_text_size([request.text], "text", teacher, tokenizer)
    return tokenizer.encode(request.text, parse_special_tokens=request.parse_special_tokens)


def _check_text_size(texts: Sequence[str], field: str, teacher: TeacherDescription, tokenizer: TextTokenizer) -> None:
    size, limit = sum(len(text.encode()) for text in texts), max_text_bytes(teacher, tokenizer)
    if size > limit:
        what = f"has {size} bytes; at most {limit} are tokenised, for {teacher.max_sequence_length} tokens"
        raise invalid_argument([Violation(field, what)])


def chat_ids(chat: pb.Chat, field: str, teacher: TeacherDescription, tokenizer: TextTokenizer) -> list[int]:
    """Ids of a chat rendered with the teacher's template."""
    # Every message is a token at least.
    if len(chat.messages) > teacher.max_sequence_length:
        text = f"has {len(chat.messages)}; at most {teacher.max_sequence_length} are allowed"
        raise invalid_argument([Violation(f"{field}.messages", text)])
    violations = [
        Violation(f"{field}.messages[{i}].role", f"is {shortened(m.role, 40)!r}; allowed are {', '.join(ROLES)}")
        for i, m in enumerate(chat.messages)
        if m.role not in ROLES
    ]
    if not chat.messages:
        violations.append(Violation(f"{field}.messages", "is empty; at least one message is needed"))
    if violations:
        raise invalid_argument(violations)
    _check_text_size([m.content for m in chat.messages], f"{field}.messages", teacher, tokenizer)
    messages = [{"role": m.role, "content": m.content} for m in chat.messages]
    try:
        # A chat that ends with the assistant's words is rendered as it is.
        return tokenizer.encode_chat(messages, to_answer=chat.messages[-1].role != "assistant")
    except ChatError as error:
        raise invalid_argument([Violation(field, str(error))]) from None


def tokenize_ids(request: pb.TokenizeRequest, teacher: TeacherDescription, tokenizer: TextTokenizer) -> list[int]:
    """Ids of a Tokenize request's text or chat; no input is an empty text."""
    if request.WhichOneof("input") == "chat":
        _check_parses_text("chat", request.parse_special_tokens)
        return chat_ids(request.chat, "chat", teacher, tokenizer)
    return text_ids(request, teacher, tokenizer)


def _check_parses_text(field: str, parse_special_tokens: bool) -> None:
    if parse_special_tokens and field != "text":
        reason = f"is set, but goes with text only; in {field} control tokens are known already"
        raise invalid_argument([Violation("parse_special_tokens", reason)])


def generation(
    request: pb.GenerateRequest, teacher: TeacherDescription, tokenizer: TextTokenizer, max_tokens_in_flight: int
) -> ContinuationRequest:
    """The whole of a Generate request; text is tokenised here.

    Args:
        max_tokens_in_flight: of all continuations together; one alone may be as long as the teacher can.
    """
    check_can_generate(teacher)
    field = request.WhichOneof("prompt")
    if teacher.chat_prompts_only and field in ("token_ids", "text"):
        reason = f"cannot be continued by the {teacher.backend} backend, which takes chats only; send chat"
        raise invalid_argument([Violation(field, reason)])
    _check_parses_text(field or "text", request.parse_special_tokens)
    prompt_ids = np.array(_prompt_ids(request, teacher, tokenizer), dtype=np.uint32)
    top_p = request.top_p if request.HasField("top_p") else 1.0
    n = request.n or 1
    assert field is not None
    violations = _id_violations(prompt_ids, field, teacher) + top_k_violations(request.top_k, 0, teacher)
    room = teacher.max_sequence_length - len(prompt_ids)
    if not len(prompt_ids):
        violations.append(Violation(field, "has no tokens; at least one is needed"))
    elif room < 1:
        allowed = f"fewer than {teacher.max_sequence_length}"
        violations.append(Violation(field, f"has {len(prompt_ids)} tokens; allowed are {allowed}"))
    elif not 1 <= request.max_tokens <= room:
        after = f"after a prompt of {len(prompt_ids)} tokens"
        violations.append(Violation("max_tokens", f"is {request.max_tokens}; allowed are 1 to {room} {after}"))
    if not (math.isfinite(request.temperature) and 0 <= request.temperature <= _MAX_TEMPERATURE):
        allowed = f"0 (greedy) to {_MAX_TEMPERATURE:g}"
        violations.append(Violation("temperature", f"is {request.temperature:g}; allowed is {allowed}"))
    if not 0 < top_p <= 1:
        violations.append(Violation("top_p", f"is {top_p:g}; allowed is more than 0 and at most 1"))
    if n > MAX_CONTINUATIONS:
        violations.append(Violation("n", f"is {n}; allowed are 1 to {MAX_CONTINUATIONS}"))
    elif n > 1 and n * (len(prompt_ids) + request.max_tokens) > max_tokens_in_flight:
        size = f"{n} x ({len(prompt_ids)} + {request.max_tokens}) tokens of prompt and continuation"
        allowed = f"at most {max_tokens_in_flight} (MAX_TOKENS_IN_FLIGHT) are allowed; ask several times"
        violations.append(Violation("n", f"is {n}, which makes {size}; {allowed}"))
    if len(request.stop) > MAX_STOP_STRINGS:
        violations.append(Violation("stop", f"has {len(request.stop)} strings; at most {MAX_STOP_STRINGS} are allowed"))
    violations += [Violation(f"stop[{i}]", "is empty") for i, text in enumerate(request.stop) if not text]
    try:
        dtype_from_proto(request.logprob_dtype)
    except ValueError as error:
        violations.append(Violation("logprob_dtype", str(error)))
    if violations:
        raise invalid_argument(violations)
    return ContinuationRequest(
        prompt_ids=prompt_ids,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=top_p,
        seed=request.seed if request.HasField("seed") else None,
        n=n,
        top_k=request.top_k,
        stop=tuple(request.stop),
        chat=tuple((m.role, m.content) for m in request.chat.messages),
        end_ids=tokenizer.end_ids if field == "chat" or request.parse_special_tokens else frozenset(),
    )


def _prompt_ids(request: pb.GenerateRequest, teacher: TeacherDescription, tokenizer: TextTokenizer) -> Sequence[int]:
    kind = request.WhichOneof("prompt")
    if kind == "token_ids":
        return request.token_ids.ids
    if kind == "text":
        return tokenizer.begin(text_ids(request, teacher, tokenizer))
    if kind == "chat":
        if request.chat.messages and request.chat.messages[-1].role == "assistant":
            at = f"chat.messages[{len(request.chat.messages) - 1}].role"
            raise invalid_argument(
                [Violation(at, "is 'assistant'; the last message must be the user's or the system's")]
            )
        return chat_ids(request.chat, "chat", teacher, tokenizer)
    raise invalid_argument([Violation("prompt", "is not set; send token_ids, text or chat")])
