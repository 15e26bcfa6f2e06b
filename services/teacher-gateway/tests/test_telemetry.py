import asyncio
import subprocess
import sys
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from latentforge.core.tracing import span, trace_headers
from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.backends.upstream import Api, Upstream
from latentforge.gateway.breaker import Breaker
from latentforge.gateway.metrics import Metrics
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1.teacher_pb2_grpc import TeacherServiceStub
from latentforge.teacher_client.errors import TeacherError
from tests.otlp import attributes, collecting

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{CALLER}-01")


async def test_a_collector_of_this_machine_is_sent_to_past_every_proxy(
    run_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with collecting() as (collector, endpoint):
        async with run_gateway(otel_exporter_otlp_endpoint=endpoint) as running:
            await running.client.teacher()
        assert collector.named("latentforge.teacher.v1.TeacherService/GetTeacher")


async def test_a_calls_spans_go_on_with_the_callers_trace(run_gateway: Any) -> None:
    async with collecting() as (collector, endpoint):
        async with (
            run_gateway(otel_exporter_otlp_endpoint=endpoint) as running,
            grpc.aio.insecure_channel(running.target) as channel,
        ):
            stub = TeacherServiceStub(channel)
            fingerprint = running.backend.tokenizer.fingerprint
            request = pb.ScoreRequest(tokenizer_fingerprint=fingerprint, token_ids=[1, 2, 3], top_k=2)
            await stub.Score(request, metadata=[TRACEPARENT, ("x-request-id", "r-1")])
            generate = pb.GenerateRequest(tokenizer_fingerprint=fingerprint, text="a", max_tokens=2)
            [_ async for _ in stub.Generate(generate)]
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Tokenize(pb.TokenizeRequest(chat=pb.Chat()))
        # Stopping sent everything.
        score = collector.named("latentforge.teacher.v1.TeacherService/Score")
        assert score.trace_id.hex() == TRACE
        assert score.parent_span_id.hex() == CALLER
        assert score.kind == Span.SPAN_KIND_SERVER
        expected = {"rpc.method": "Score", "rpc.grpc.status_code": 0, "latentforge.request_id": "r-1"}
        assert attributes(score).items() >= (expected | {"latentforge.rows": 2}).items()
        for name in ("cache lookup", "backend score"):
            child = collector.named(name)
            assert child.trace_id == score.trace_id
            assert child.parent_span_id == score.span_id
            assert score.start_time_unix_nano <= child.start_time_unix_nano
            assert child.end_time_unix_nano <= score.end_time_unix_nano
        generated = collector.named("latentforge.teacher.v1.TeacherService/Generate")
        assert generated.trace_id != score.trace_id
        assert collector.named("backend generate").parent_span_id == generated.span_id
        refused = collector.named("latentforge.teacher.v1.TeacherService/Tokenize")
        assert refused.status.code == Status.STATUS_CODE_ERROR
        assert refused.status.message == "INVALID_ARGUMENT"
        (resource,) = {r.resource.SerializeToString() for q in collector.requests for r in q.resource_spans}
        assert b"teacher-gateway" in resource


async def test_the_trace_goes_on_upstream(run_gateway: Any) -> None:
    received: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        received.append(request.headers)
        return httpx.Response(200, json={"ok": True})

    api = Api("upstream", "http://upstream", "URL", None, "KEY", 1, 1, 1, 5.0)
    upstream = Upstream(api, Breaker(5, 10, 10), Metrics(), transport=httpx.MockTransport(answer))
    async with collecting() as (collector, endpoint):
        async with run_gateway(otel_exporter_otlp_endpoint=endpoint) as running:
            inner = running.backend.inner
            plain = inner.score

            async def score(sequences: Any, top_k: int) -> Any:
                await upstream.get("/models")
                return await plain(sequences, top_k)

            inner.score = score
            await running.client.score([1, 2, 3], 3)
        sent = collector.named("upstream GET")
        assert sent.kind == Span.SPAN_KIND_CLIENT
        assert sent.parent_span_id == collector.named("backend score").span_id
        assert received[0]["traceparent"].startswith(f"00-{sent.trace_id.hex()}-{sent.span_id.hex()}-")
        assert attributes(sent)["http.response.status_code"] == 200
    await upstream.get("/models")
    assert "traceparent" not in received[1]
    await upstream.close()


async def test_a_batchs_work_is_in_the_trace_of_a_call_that_waits_for_it(run_gateway: Any) -> None:
    async with collecting() as (collector, endpoint):
        async with run_gateway(otel_exporter_otlp_endpoint=endpoint, max_batch_tokens=4) as running:
            await running.client.teacher()
            await asyncio.gather(*(running.client.score([i, 1, 2, 3], 2) for i in range(4)))
        calls = {s.span_id for s in collector.spans() if s.name.endswith("/Score")}
        parents = [s.parent_span_id for s in collector.spans() if s.name == "backend score"]
        assert len(parents) == 4
        assert set(parents) == calls


async def test_a_failure_is_marked_without_its_text(run_gateway: Any) -> None:
    async with collecting() as (collector, endpoint):
        async with run_gateway(otel_exporter_otlp_endpoint=endpoint) as running:
            await running.client.teacher()
            running.backend.failure = BackendError("quotes a caller", FailureKind.FORBIDDEN)
            with pytest.raises(TeacherError):
                await running.client.score([1, 2, 3], 3)
        failed = collector.named("backend score")
        assert (failed.status.code, failed.status.message) == (Status.STATUS_CODE_ERROR, "BackendError")
        assert b"quotes a caller" not in b"".join(r.SerializeToString() for r in collector.requests)


async def test_a_collector_that_is_gone_costs_no_call(run_gateway: Any, free_port: Any) -> None:
    async with run_gateway(otel_exporter_otlp_endpoint=f"http://127.0.0.1:{free_port()}") as running:
        assert len(await running.client.score([1, 2, 3], 3)) == 2
        started = asyncio.get_running_loop().time()
        await running.stop()
        assert asyncio.get_running_loop().time() - started < 10


def test_nothing_is_traced_outside_a_traced_call() -> None:
    with span("nothing") as note:
        note("a", 1)
        assert trace_headers() == {}


def test_without_an_endpoint_no_tracing_is_even_imported() -> None:
    # Of itself: a Redis client imports OpenTelemetry's metrics wherever they are installed.
    program = (
        "import sys, latentforge.gateway.rpc.interceptor, latentforge.gateway.telemetry\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
