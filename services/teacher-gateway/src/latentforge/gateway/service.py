"""latentforge.teacher.v1.TeacherService over the core: messages in, messages out, failures as statuses."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
from grpc_status import rpc_status

from latentforge.core.sparse_rows import LogprobDtype
from latentforge.core.wire import dtype_from_proto, rows_to_proto
from latentforge.gateway import validation
from latentforge.gateway.backends.base import BackendError, TeacherDescription, TokenIds
from latentforge.gateway.errors import ApiError, teacher_failed
from latentforge.gateway.teacher import Answer, Teacher
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1.teacher_pb2_grpc import TeacherServiceServicer

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class TeacherServicer(TeacherServiceServicer):
    """Answers UNAVAILABLE until :meth:`open` gives it a teacher and after :meth:`drain` was called."""

    def __init__(self) -> None:
        self._teacher: Teacher | None = None
        self._draining = False
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def open(self, teacher: Teacher) -> None:
        self._teacher = teacher

    async def drain(self, seconds: float) -> bool:
        """Refuses new calls and waits for those under way; false if ``seconds`` were not enough."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    @asynccontextmanager
    async def _call(self, context: Context) -> AsyncIterator[Teacher]:
        """Around every answer: the teacher, or the status that tells why the call failed."""
        self._calls += 1
        self._idle.clear()
        try:
            yield self._ready_teacher()
        except ApiError as error:
            await _abort(context, error)
        except BackendError as error:
            _log.error("the teacher failed: %s", error)
            await _abort(context, teacher_failed(error))
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._idle.set()

    def _ready_teacher(self) -> Teacher:
        if self._draining:
            raise ApiError(grpc.StatusCode.UNAVAILABLE, "this gateway is shutting down")
        if self._teacher is None:
            raise ApiError(grpc.StatusCode.UNAVAILABLE, "the teacher is still being loaded")
        return self._teacher

    async def GetTeacher(self, request: pb.GetTeacherRequest, context: Context) -> pb.GetTeacherResponse:  # noqa: N802
        async with self._call(context) as teacher:
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
                healthy=True,
                chat_prompts_only=about.chat_prompts_only,
            )

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:  # noqa: N802
        async with self._call(context) as teacher:
            about = teacher.description
            validation.check_can_score(about)
            validation.check_fingerprint(request.tokenizer_fingerprint, about)
            top_k, dtype = validation.row_arguments(request.top_k, request.logprob_dtype, about)
            token_ids = validation.sequence_ids(request.token_ids, "token_ids", about)
            return _score_response(await teacher.score(token_ids, top_k, dtype), dtype, about)

    async def ScoreBatch(  # noqa: N802
        self, request: pb.ScoreBatchRequest, context: Context
    ) -> AsyncIterator[pb.ScoreBatchResponse]:
        async with self._call(context) as teacher:
            about = teacher.description
            validation.check_can_score(about)
            validation.check_fingerprint(request.tokenizer_fingerprint, about)
            top_k, dtype = validation.row_arguments(request.top_k, request.logprob_dtype, about)
            good: list[tuple[int, TokenIds]] = []
            for index, sequence in enumerate(request.sequences):
                try:
                    good.append((index, validation.sequence_ids(sequence.ids, f"sequences[{index}].ids", about)))
                except ApiError as error:
                    yield pb.ScoreBatchResponse(index=index, error=error.status())
            async for scored in teacher.score_many(good, top_k, dtype):
                if scored.answer is None:
                    assert scored.error is not None
                    yield pb.ScoreBatchResponse(index=scored.index, error=teacher_failed(scored.error).status())
                else:
                    response = _score_response(scored.answer, dtype, about)
                    yield pb.ScoreBatchResponse(index=scored.index, score=response)

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        async with self._call(context) as teacher:
            about = teacher.description
            validation.check_fingerprint(request.tokenizer_fingerprint, about)
            generation = await asyncio.to_thread(validation.generation, request, about, teacher.tokenizer)
            dtype = dtype_from_proto(request.logprob_dtype)
            begun: set[int] = set()
            async for piece in teacher.generate(generation):
                first = piece.index not in begun
                begun.add(piece.index)
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
        async with self._call(context) as teacher:
            if request.WhichOneof("input") == "chat":
                ids = await asyncio.to_thread(validation.chat_ids, request.chat, "chat", teacher.tokenizer)
            else:
                ids = await asyncio.to_thread(teacher.tokenizer.encode, request.text)
            fingerprint = teacher.description.tokenizer_fingerprint
            return pb.TokenizeResponse(token_ids=ids, tokenizer_fingerprint=fingerprint)

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:  # noqa: N802
        async with self._call(context) as teacher:
            validation.check_fingerprint(request.tokenizer_fingerprint, teacher.description)
            ids = validation.detokenize_ids(request.token_ids, teacher.description)
            return pb.DetokenizeResponse(text=await asyncio.to_thread(teacher.tokenizer.decode, ids))

    async def GetCacheStats(  # noqa: N802
        self, request: pb.GetCacheStatsRequest, context: Context
    ) -> pb.GetCacheStatsResponse:
        async with self._call(context) as teacher:
            report = await teacher.cache_report()
            return pb.GetCacheStatsResponse(
                kind=report.kind,
                healthy=report.store is not None,
                hits=report.scoring.hits,
                misses=report.scoring.misses,
                rows_from_cache=report.scoring.rows_from_cache,
                rows_computed=report.scoring.rows_computed,
                entries=report.store.entries if report.store else 0,
                bytes=report.store.bytes if report.store else 0,
                corrupt_entries=report.scoring.corrupt_entries,
                errors=report.scoring.errors,
                saved_seconds=report.scoring.saved_seconds,
            )


async def _abort(context: Context, error: ApiError) -> NoReturn:
    status = rpc_status.to_status(error.status())
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort always raises")


def _provenance(about: TeacherDescription, *, cache_hit: bool = False, milliseconds: float = 0.0) -> pb.Provenance:
    return pb.Provenance(
        backend=about.backend,
        model=about.model,
        revision=about.revision,
        engine=about.engine,
        cache_hit=cache_hit,
        milliseconds=milliseconds,
    )


def _score_response(answer: Answer, dtype: LogprobDtype, about: TeacherDescription) -> pb.ScoreResponse:
    return pb.ScoreResponse(
        rows=rows_to_proto(answer.rows, dtype),
        provenance=_provenance(about, cache_hit=answer.cache_hit, milliseconds=answer.milliseconds),
    )
