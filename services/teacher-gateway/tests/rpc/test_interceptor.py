import asyncio
import io
import json
import logging
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from latentforge.core.logs import configure_logging
from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.base import BackendError, ContinuationRequest, FailureKind, Piece
from latentforge.gateway.main import Gateway, serve
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1.teacher_pb2_grpc import TeacherServiceStub
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.errors import TeacherError

KEY = "key-of-the-gateway"
VENICE_KEY = "key-of-venice"
PASSWORD = "password-of-the-cache"
TEXT = "a text that belongs to the caller"
Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
async def stub(running: Any) -> Any:
    async with grpc.aio.insecure_channel(running.target) as channel:
        yield TeacherServiceStub(channel)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """JSON lines of the log so far."""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logging("teacher-gateway", level="INFO", json_lines=True)
    return lambda: [json.loads(line) for line in stderr.getvalue().splitlines()]


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The google.rpc details of a failed call by the names of their types."""
    found: dict[str, Any] = {}
    for packed in rpc_status.from_call(error).details:  # type: ignore[arg-type]
        name = packed.TypeName().rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name)()
        assert packed.Unpack(found[name])
    return found


async def test_a_request_id_comes_back_and_is_in_the_log(
    running: Any, stub: Any, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    call = stub.Tokenize(pb.TokenizeRequest(text="abc"), metadata=[("x-request-id", "mine-1")])
    await call
    assert dict(await call.initial_metadata())["x-request-id"] == "mine-1"
    stream = stub.ScoreBatch(
        pb.ScoreBatchRequest(
            tokenizer_fingerprint=running.backend.tokenizer.fingerprint,
            sequences=[pb.TokenIds(ids=[1, 2, 3]), pb.TokenIds(ids=[4, 5])],
            top_k=2,
        ),
        metadata=[("x-request-id", "mine-2")],
    )
    assert dict(await stream.initial_metadata())["x-request-id"] == "mine-2"
    assert len([answer async for answer in stream]) == 2
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Score(pb.ScoreRequest(), metadata=[("x-request-id", "mine-3")])
    trailer: Any = caught.value.trailing_metadata()
    assert dict(trailer)["x-request-id"] == "mine-3"
    access = {line["request_id"]: line for line in lines() if "method" in line}
    assert access["mine-1"].items() >= {"method": "Tokenize", "status": "OK", "tokens": 3, "level": "info"}.items()
    assert access["mine-2"].items() >= {"method": "ScoreBatch", "status": "OK", "tokens": 5, "rows": 3}.items()
    assert access["mine-3"]["reason"] == "TOKENIZER_MISMATCH"
    assert access["mine-3"]["status"] == "FAILED_PRECONDITION"
    assert access["mine-1"]["milliseconds"] > 0
    assert access["mine-1"]["peer"].startswith("ipv4:127.0.0.1")


@pytest.mark.parametrize("given", ["", "with space", "x" * 129, '"quoted"'])
async def test_an_unfit_request_id_is_replaced(stub: Any, given: str) -> None:
    call = stub.Tokenize(pb.TokenizeRequest(text="a"), metadata=[("x-request-id", given)])
    await call
    assert re.fullmatch("[0-9a-f]{32}", str(dict(await call.initial_metadata())["x-request-id"]))


async def test_lines_logged_while_a_call_is_answered_carry_its_id(
    running: Any, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    await running.client.teacher()
    running.backend.failure = BackendError("out of order", FailureKind.GONE, retry_after=0.01)
    with pytest.raises(TeacherError) as caught:
        await running.client.score([1, 2, 3], 3)
    assert caught.value.request_id
    told = [line for line in lines() if line.get("request_id") == caught.value.request_id]
    assert any("out of order" in line["message"] and line["level"] == "warning" for line in told)


async def test_an_unexpected_exception_is_logged_and_its_inside_stays_inside(
    running: Any, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    await running.client.teacher()

    def generate(request: ContinuationRequest) -> AsyncIterator[Piece]:
        raise KeyError(TEXT)

    running.backend.generate = generate
    with pytest.raises(TeacherError) as caught:
        await anext(running.client.generate(pb.GenerateRequest(text="a", max_tokens=3)))
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert caught.value.reason == "GATEWAY_FAILED"
    assert caught.value.request_id is not None
    assert caught.value.request_id in caught.value.message
    assert TEXT not in str(caught.value)
    (error,) = (line for line in lines() if line["level"] == "error")
    assert error["message"] == "Generate failed unexpectedly: KeyError"
    assert "in generate" in error["traceback"]
    assert TEXT not in json.dumps(lines())
    assert error["request_id"] == caught.value.request_id


async def test_no_secret_and_no_payload_reaches_the_log(
    run_gateway: Any, free_port: Callable[[], int], lines: Callable[[], list[dict[str, Any]]]
) -> None:
    settings = {
        "gateway_api_key": KEY,
        "venice_api_key": VENICE_KEY,
        "cache_url": f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0",
    }
    ids = [271, 182, 281, 82, 84]
    async with run_gateway(**settings) as running:
        async with TeacherClient(running.target, timeout=10, api_key=KEY, attempts=1) as client:
            assert len(await client.score(ids, 4)) == 4
            await client.tokenize(TEXT)
            async for _ in client.generate(pb.GenerateRequest(text=TEXT, max_tokens=3, temperature=1, stop=[TEXT])):
                pass
            for failure in (KeyError(TEXT), BackendError(f"no {TEXT}", FailureKind.REFUSED)):
                running.backend.failure = failure
                with pytest.raises(TeacherError):
                    await client.score([*ids, 7], 4)
            bad = pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role=TEXT)]), max_tokens=3)
            with pytest.raises(TeacherError, match="role"):
                await anext(client.generate(bad))
            with pytest.raises(TeacherError, match="27182"):
                await client.score([*ids, 27182], 4)
        async with TeacherClient(running.target, timeout=10, api_key=f"wrong-{KEY}", attempts=1) as client:
            with pytest.raises(TeacherError, match="UNAUTHENTICATED"):
                await client.teacher()
    logged = json.dumps(lines(), ensure_ascii=False)
    assert len(lines()) > 8
    for secret in (KEY, VENICE_KEY, PASSWORD, TEXT, "27182", "271, 182"):
        assert secret not in logged


async def test_metrics_count_calls_by_method_and_status(run_gateway: Any) -> None:
    async with run_gateway(gateway_metrics_port=0) as running:
        await running.client.score([1, 2, 3], 3)
        with pytest.raises(TeacherError):
            await running.client.score([1], 3)
        [_ async for _ in running.client.score_batch([[1, 2, 3], [3]], 3)]
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"http://127.0.0.1:{running.gateway.metrics_port}/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['gateway_requests_total{code="OK",method="Score"}'] == "1.0"
    assert values['gateway_requests_total{code="INVALID_ARGUMENT",method="Score"}'] == "1.0"
    assert values['gateway_requests_total{code="OK",method="ScoreBatch"}'] == "1.0"
    assert values['gateway_request_seconds_count{method="Score"}'] == "2.0"
    assert values["gateway_in_flight"] == "0.0"
    assert float(values["process_resident_memory_bytes"]) > 1e6
    assert "process_cpu_seconds_total" in values


async def test_without_a_port_there_are_no_metrics_over_http(running: Any) -> None:
    assert running.gateway.metrics_port is None


async def test_a_metrics_port_that_is_taken_is_an_error_that_names_it(
    run_gateway: Any, make_settings: Callable[..., Any]
) -> None:
    async with run_gateway(gateway_metrics_port=0) as running:
        port = running.gateway.metrics_port
        with pytest.raises(SettingsError, match=f"cannot serve metrics on 127.0.0.1:{port} .*GATEWAY_METRICS_PORT"):
            await serve(make_settings(gateway_metrics_port=port))


async def test_calls_under_way_are_counted_and_what_callers_send_is_no_label(
    running: Any, eventually: Eventually
) -> None:
    metrics = running.gateway.metrics
    await running.client.teacher()
    running.backend.gate.clear()
    scoring = asyncio.create_task(running.client.score([1, 2, 3], 4))
    await eventually(lambda: metrics.registry.get_sample_value("gateway_in_flight") == 1)
    running.backend.gate.set()
    await scoring
    assert metrics.registry.get_sample_value("gateway_in_flight") == 0
    async with grpc.aio.insecure_channel(running.target) as channel:
        unknown = channel.unary_unary("/latentforge.teacher.v1.TeacherService/Sc0re", None, None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unknown(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    labels = {s.labels["method"] for f in metrics.registry.collect() for s in f.samples if "method" in s.labels}
    assert labels == {"GetTeacher", "Score"}


class HeldGeneration:
    """Generates nothing until it is cancelled, and notes that."""

    def __init__(self) -> None:
        self.ended = False

    async def generate(self, request: ContinuationRequest) -> AsyncIterator[Piece]:
        try:
            yield Piece(0, [5], "x", None, pb.FINISH_REASON_UNSPECIFIED)
            await asyncio.Event().wait()
        finally:
            self.ended = True


async def test_a_deadline_ends_the_call_and_the_teachers_work_under_it(running: Any, eventually: Eventually) -> None:
    held = HeldGeneration()
    running.backend.generate = held.generate
    async with TeacherClient(running.target, timeout=0.5) as client:
        generation = client.generate(pb.GenerateRequest(text="a", max_tokens=9))
        assert (await anext(generation)).text == "x"
        with pytest.raises(TeacherError, match="DEADLINE_EXCEEDED"):
            await anext(generation)
    await eventually(lambda: held.ended)
    value = running.gateway.metrics.registry.get_sample_value
    await eventually(lambda: value("gateway_in_flight") == 0)
    ended = {
        code: value("gateway_requests_total", {"method": "Generate", "code": code}) or 0
        for code in ("DEADLINE_EXCEEDED", "CANCELLED")
    }
    assert sum(ended.values()) == 1


async def test_a_caller_who_leaves_ends_the_teachers_work(running: Any, stub: Any, eventually: Eventually) -> None:
    held = HeldGeneration()
    running.backend.generate = held.generate
    fingerprint = running.backend.tokenizer.fingerprint
    call = stub.Generate(pb.GenerateRequest(tokenizer_fingerprint=fingerprint, text="a", max_tokens=9))
    await call.read()
    call.cancel()
    await eventually(lambda: held.ended)
    value = running.gateway.metrics.registry.get_sample_value
    labels = {"method": "Generate", "code": "CANCELLED"}
    await eventually(lambda: value("gateway_requests_total", labels) == 1)


async def test_sequences_that_wait_at_a_deadline_are_never_computed(run_gateway: Any, eventually: Eventually) -> None:
    async with run_gateway(max_batch_tokens=10, max_tokens_in_flight=10) as running:
        await running.client.teacher()
        running.backend.gate.clear()
        async with TeacherClient(running.target, timeout=0.4, attempts=1) as client:
            with pytest.raises(TeacherError, match="DEADLINE_EXCEEDED"):
                [_ async for _ in client.score_batch([[i] * 10 for i in range(40)], 3)]
        value = running.gateway.metrics.registry.get_sample_value
        await eventually(lambda: value("gateway_in_flight") == 0)
        running.backend.gate.set()
        assert len(await running.client.score([299] * 10, 3)) == 9
        assert len(running.backend.scored) <= 3


async def test_a_request_beyond_the_cap_is_resource_exhausted(running: Any) -> None:
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(running.target, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await TeacherServiceStub(channel).Tokenize(pb.TokenizeRequest(text="a" * (65 << 20)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(TeacherError, match="larger than max") as refused:
        await running.client.tokenize("a" * (65 << 20))
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.retry_after is None


async def test_failures_tell_programs_their_cause_and_when_to_come_back(
    make_settings: Callable[..., Any], running: Any, stub: Any
) -> None:
    about = await stub.GetTeacher(pb.GetTeacherRequest())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Score(pb.ScoreRequest(tokenizer_fingerprint="another", token_ids=[1, 2], top_k=2))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details(caught.value)["ErrorInfo"].reason == "TOKENIZER_MISMATCH"
    bad = pb.ScoreRequest(tokenizer_fingerprint=about.tokenizer_fingerprint, token_ids=[1, 300])
    # No enum of this version; written as its bytes, since the generated types would not take it.
    bad.MergeFromString(b"\x28\x09")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Score(bad)
    told = details(caught.value)
    assert told["ErrorInfo"].reason == "INVALID_FIELDS"
    assert {v.field for v in told["BadRequest"].field_violations} == {"top_k", "row_encoding"}
    gateway = Gateway(make_settings(), running.backend)
    await gateway.start()
    try:
        options = [("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}", options=options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await TeacherServiceStub(channel).GetTeacher(pb.GetTeacherRequest())
    finally:
        await gateway.stop()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    told = details(caught.value)
    assert told["ErrorInfo"].reason == "TEACHER_LOADING"
    assert told["RetryInfo"].retry_delay.ToMilliseconds() == 1000


async def test_a_client_waits_while_the_teacher_is_loaded(make_settings: Callable[..., Any]) -> None:
    gateway = Gateway(make_settings())
    await gateway.start()
    try:
        async with TeacherClient(f"127.0.0.1:{gateway.port}", timeout=20) as client:
            asking = asyncio.create_task(client.teacher())
            await asyncio.sleep(0.3)
            assert not asking.done()
            await gateway.load()
            assert (await asking).model == "tiny-random"
    finally:
        await gateway.stop()


async def test_many_long_violations_still_fit_the_answer(running: Any, stub: Any) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="ż" * 150) for _ in range(200)])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Tokenize(pb.TokenizeRequest(chat=chat))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(details(caught.value)["BadRequest"].field_violations) == 8
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Score(pb.ScoreRequest(tokenizer_fingerprint="\U0001f980" * 10000))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_continuations_that_exceed_the_budget_together_are_refused(running: Any, stub: Any) -> None:
    request = pb.GenerateRequest(
        tokenizer_fingerprint=running.backend.tokenizer.fingerprint, text="a", max_tokens=511, n=64
    )
    with pytest.raises(grpc.aio.AioRpcError, match="MAX_TOKENS_IN_FLIGHT") as caught:
        await stub.Generate(request).read()
    assert [v.field for v in details(caught.value)["BadRequest"].field_violations] == ["n"]


async def test_bytes_that_are_no_message_are_an_invalid_argument(
    running: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with grpc.aio.insecure_channel(running.target) as channel:
        for method in ("Score", "Generate"):
            call = channel.unary_stream(f"/latentforge.teacher.v1.TeacherService/{method}", None, None)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"\xff\xff\xff\xff").read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert details(caught.value)["ErrorInfo"].reason == "MALFORMED_REQUEST"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
