"""latentforge.teacher.v1.TeacherService over the core: messages in, messages out, failures as statuses."""

from collections.abc import AsyncIterator

import numpy as np

from latentforge.gateway.backends.base import CandidateIds, TeacherDescription, TokenIds
from latentforge.gateway.rpc import validation
from latentforge.gateway.rpc.errors import ApiError, teacher_failed
from latentforge.gateway.rpc.host import TeacherHost
from latentforge.gateway.rpc.interceptor import Context, count
from latentforge.gateway.rpc.request_size import check_request_size
from latentforge.gateway.scoring.teacher import SequenceAnswer
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1.teacher_pb2_grpc import TeacherServiceServicer
from latentforge.teacher_client.sparse_rows import LogprobDtype, PackedRows
from latentforge.teacher_client.wire import dtype_from_proto, is_packed, rows_to_proto


class TeacherServicer(TeacherServiceServicer):
    """Methods raise ApiError or BackendError, which the interceptor turns into statuses.

    Args:
        host: of the teacher; until it has one, calls are UNAVAILABLE.
        max_tokens_in_flight: that the continuations of one request may have together.
    """

    def __init__(self, host: TeacherHost, max_tokens_in_flight: int) -> None:
        self._host = host
        self._max_tokens_in_flight = max_tokens_in_flight

    def check_size(self, method: str, num_bytes: int) -> None:
        """Refuses a request by its size alone, before it is parsed."""
        if (teacher := self._host.teacher) is not None:
            check_request_size(method, num_bytes, teacher.description, teacher.tokenizer)

    async def GetTeacher(self, request: pb.GetTeacherRequest, context: Context) -> pb.GetTeacherResponse:  # noqa: N802
        async with self._host.call() as teacher:
            about = teacher.description
            return pb.GetTeacherResponse(
                backend=about.backend,
                model=about.model,
                revision=about.revision,
                quantization=about.quantization,
                engine=about.engine,
                can_score=about.can_score,
                can_generate=about.can_generate,
                max_top_k=about.max_top_k,
                max_sequence_length=about.max_sequence_length,
                vocab_size=about.vocab_size,
                tokenizer_fingerprint=about.tokenizer_fingerprint,
                logprobs_mode=about.logprobs_mode,
                id_fidelity=about.id_fidelity,
                healthy=not teacher.health.problems,
                problems=teacher.health.problems,
                chat_prompts_only=about.chat_prompts_only,
                bos_id=teacher.tokenizer.bos_id,
                can_score_candidates=about.can_score_candidates,
            )

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:  # noqa: N802
        async with self._host.call() as teacher:
            about = teacher.description
            validation.check_can_score(about)
            written = request.WhichOneof("input") is not None
            validation.check_one_input(request)
            validation.check_fingerprint(request.tokenizer_fingerprint, about, has_ids=not written)
            validation.check_revision(request.expected_revision, about)
            top_k, dtype = validation.row_arguments(request, about)
            if written:
                token_ids = await self._host.tokenise(validation.written_ids, request, about, teacher.tokenizer)
            else:
                token_ids = validation.sequence_ids(request.token_ids, "token_ids", about)
            packed = is_packed(request.row_encoding)
            candidates = None
            if request.HasField("candidates"):
                validation.check_can_score_candidates(about)
                candidates = validation.candidate_ids(request.candidates, "candidates", len(token_ids) - 1, about)
            answer = await teacher.score(token_ids, top_k, dtype, packed=packed, candidates=candidates)
            response = _score_response(answer, dtype, about, packed=packed)
            if written:
                response.token_ids.extend(token_ids.tolist())
            if request.token_strings:
                names = await self._host.tokenise(self._token_strings, answer, token_ids, candidates)
                response.token_strings.update(names)
            count(tokens=len(token_ids), rows=response.rows.num_rows)
            return response

    def _token_strings(
        self, answer: SequenceAnswer, token_ids: TokenIds, candidates: CandidateIds | None
    ) -> dict[int, str]:
        """How each id of an answer is written."""
        rows = answer.rows.unpacked() if isinstance(answer.rows, PackedRows) else answer.rows
        entries = rows.ids[np.arange(rows.top_k) < rows.counts[:, None]]
        asked = token_ids[:0] if candidates is None else candidates.reshape(-1)
        table = self._host.names.table
        return {i: table[i] for i in np.unique(np.concatenate([token_ids, entries, asked])).tolist()}

    async def ScoreBatch(  # noqa: N802
        self, request: pb.ScoreBatchRequest, context: Context
    ) -> AsyncIterator[pb.ScoreBatchResponse]:
        async with self._host.call() as teacher:
            about = teacher.description
            validation.check_can_score(about)
            validation.check_fingerprint(request.tokenizer_fingerprint, about)
            validation.check_revision(request.expected_revision, about)
            top_k, dtype = validation.row_arguments(request, about)
            validation.check_number_of_sequences(len(request.sequences))
            validation.check_number_of_candidates(request)
            if request.candidates:
                validation.check_can_score_candidates(about)
            good: list[tuple[int, TokenIds]] = []
            candidates: dict[int, CandidateIds] = {}
            for index, sequence in enumerate(request.sequences):
                try:
                    token_ids = validation.sequence_ids(sequence.ids, f"sequences[{index}].ids", about)
                    if request.candidates:
                        field, rows = f"candidates[{index}]", len(token_ids) - 1
                        own = validation.candidate_ids(request.candidates[index], field, rows, about)
                        candidates.update({} if own is None else {index: own})
                    good.append((index, token_ids))
                except ApiError as error:
                    yield pb.ScoreBatchResponse(index=index, error=error.status())
            packed = is_packed(request.row_encoding)
            async for scored in teacher.score_many(good, top_k, dtype, packed=packed, candidates=candidates):
                if scored.answer is None:
                    assert scored.error is not None
                    yield pb.ScoreBatchResponse(index=scored.index, error=teacher_failed(scored.error).status())
                else:
                    response = _score_response(scored.answer, dtype, about, packed=packed)
                    count(tokens=response.rows.num_rows + 1, rows=response.rows.num_rows)
                    yield pb.ScoreBatchResponse(index=scored.index, score=response)

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        async with self._host.call() as teacher:
            about = teacher.description
            has_ids = request.WhichOneof("prompt") == "token_ids"
            validation.check_fingerprint(request.tokenizer_fingerprint, about, has_ids=has_ids)
            validation.check_revision(request.expected_revision, about)
            generation = await self._host.tokenise(
                validation.generation, request, about, teacher.tokenizer, self._max_tokens_in_flight
            )
            dtype = dtype_from_proto(request.logprob_dtype)
            begun: set[int] = set()
            async for piece in teacher.generate(generation):
                first = piece.index not in begun
                begun.add(piece.index)
                count(tokens=len(piece.token_ids), rows=0 if piece.rows is None else len(piece.rows))
                yield pb.GenerateResponse(
                    index=piece.index,
                    token_ids=piece.token_ids,
                    text=piece.text,
                    rows=None if piece.rows is None else rows_to_proto(piece.rows, dtype),
                    finish_reason=piece.finish_reason,
                    detail=piece.detail,
                    prompt_token_ids=generation.prompt_ids.tolist() if first else [],
                    provenance=_provenance(about) if first else None,
                )

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:  # noqa: N802
        async with self._host.call() as teacher:
            about = teacher.description
            ids = await self._host.tokenise(validation.tokenize_ids, request, about, teacher.tokenizer)
            count(tokens=len(ids))
            return pb.TokenizeResponse(token_ids=ids, tokenizer_fingerprint=about.tokenizer_fingerprint)

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:  # noqa: N802
        async with self._host.call() as teacher:
            validation.check_fingerprint(request.tokenizer_fingerprint, teacher.description)
            ids = validation.detokenize_ids(request.token_ids, teacher.description)
            count(tokens=len(ids))
            return pb.DetokenizeResponse(text=await self._host.tokenise(teacher.tokenizer.decode, ids))

    async def GetCacheStats(  # noqa: N802
        self, request: pb.GetCacheStatsRequest, context: Context
    ) -> pb.GetCacheStatsResponse:
        async with self._host.call() as teacher:
            report = await teacher.cache_report()
            silent = "" if report.store else f"the {report.kind} cache does not answer"
            problem = teacher.health.cache or silent
            return pb.GetCacheStatsResponse(
                kind=report.kind,
                healthy=not problem,
                problem=problem,
                hits=report.scoring.hits,
                misses=report.scoring.misses,
                rows_from_cache=report.scoring.rows_from_cache,
                rows_computed=report.scoring.rows_computed,
                entries=report.store.entries if report.store else 0,
                bytes=report.store.bytes if report.store else 0,
                corrupt_entries=report.scoring.corrupt_entries,
                errors=report.errors,
                saved_seconds=report.scoring.saved_seconds,
                dropped_writes=report.dropped_writes,
                spent_usd=report.spent_usd,
            )


def _provenance(about: TeacherDescription, *, cache_hit: bool = False, milliseconds: float = 0.0) -> pb.Provenance:
    return pb.Provenance(
        backend=about.backend,
        model=about.model,
        revision=about.revision,
        engine=about.engine,
        cache_hit=cache_hit,
        milliseconds=milliseconds,
    )


def _score_response(
    answer: SequenceAnswer, dtype: LogprobDtype, about: TeacherDescription, *, packed: bool
) -> pb.ScoreResponse:
    asked = answer.candidate_logprobs
    return pb.ScoreResponse(
        rows=rows_to_proto(answer.rows, dtype, packed=packed),
        candidate_logprobs=b"" if asked is None else asked.astype("<f4", copy=False).tobytes(),
        provenance=_provenance(about, cache_hit=answer.cache_hit, milliseconds=answer.milliseconds),
    )
