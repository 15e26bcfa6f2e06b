import asyncio
import io
import json
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.parser import text_string_to_metric_families

from latentforge.core.logs import configure_logging
from latentforge.core.settings import load_settings
from latentforge.inference.main import Service, build
from latentforge.inference.settings import InferenceSettings
from tests.otlp import attributes, collecting

Publish = Callable[..., Path]
Running = Callable[..., AbstractAsyncContextManager[tuple[httpx.AsyncClient, Service]]]
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "nobody's business"


@pytest.fixture
def running(checkpoints: Path) -> Running:
    @asynccontextmanager
    async def start(**changes: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
        settings = load_settings(InferenceSettings, checkpoints_dir=checkpoints, inference_device="cpu", **changes)
        service = build(settings)
        service.registry.refresh()
        transport = httpx.ASGITransport(app=service.app)
        async with (
            service.app.router.lifespan_context(service.app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            yield client, service

    return start


@pytest.fixture
def json_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What has been logged since it was last asked, as objects."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logging("inference", level="INFO", json_lines=True)

    def lines() -> list[dict[str, Any]]:
        text = stderr.getvalue()
        stderr.seek(0)
        stderr.truncate()
        return [json.loads(line) for line in text.splitlines()]

    yield lines
    root.handlers[:] = handlers
    root.setLevel(level)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


async def test_a_request_is_one_line_with_what_it_was(running: Running, publish: Publish, json_lines: Any) -> None:
    publish(1)
    async with running() as (client, _):
        json_lines()
        body = {"prompt": SECRET, "max_tokens": 8, "temperature": 0}
        answer = (await client.post("/generate?q=hidden", json=body, headers={"x-request-id": "r-1"})).json()
        (line,) = json_lines()
        usage = answer["usage"]
        expected = {
            "level": "info",
            "service": "inference",
            "request_id": "r-1",
            "method": "POST",
            "path": "/generate",
            "status": 200,
            "checkpoint": "demo/step-00000001",
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
        }
        assert line.items() >= expected.items()
        assert line["milliseconds"] >= line["first_token_milliseconds"] >= line["queue_milliseconds"] >= 0
        assert line["message"].startswith("POST /generate 200 in ")
        assert line["message"].endswith(" tokens (r-1)")
        assert SECRET not in json.dumps(line)
        assert "hidden" not in json.dumps(line)


async def test_what_a_caller_sends_is_in_no_line(running: Running, json_lines: Any) -> None:
    async with running(inference_api_key="s3cret") as (client, _):
        key = {"authorization": "Bearer s3cret"}
        await client.get("/nobodys-business", headers=key)
        await client.post("/generate", json={"prompt": SECRET}, headers={"authorization": "Bearer wr0ng"})
        await client.post("/generate", json={SECRET: 1}, headers=key)
        await client.request("BREW", "/generate", headers=key | {"x-request-id": "no\x7fid"})
        await client.get("/health")
        lines = json_lines()
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("GET", "other", 404),
        ("POST", "other", 401),
        ("POST", "/generate", 422),
        ("other", "/generate", 405),
    ]
    text = json.dumps(lines)
    for sent in ("nobody", "s3cret", "wr0ng", "BREW", "\\u007f"):
        assert sent not in text


async def test_an_unexpected_failure_is_logged_without_its_text(
    running: Running, publish: Publish, json_lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(1)
    async with running() as (client, service):
        json_lines()

        def fail(*_: Any) -> None:
            raise ZeroDivisionError(SECRET)

        monkeypatch.setattr(service.registry, "_served", property(fail))
        monkeypatch.setattr(type(service.registry), "current", property(fail))
        answer = await client.post("/generate", json={"prompt": "x"}, headers={"x-request-id": "r7"})
        assert answer.status_code == 500
        assert "r7" in answer.json()["error"]["message"]
        assert SECRET not in answer.text
        # The watcher of checkpoints may fail on it too meanwhile.
        failure, line = (found for found in json_lines() if found.get("request_id") == "r7")
    assert (failure["level"], line["status"]) == ("error", 500)
    assert "ZeroDivisionError" in failure["message"]
    assert "fail" in failure["traceback"]
    assert SECRET not in json.dumps([failure, line])


async def test_known_traffic_gives_known_figures(running: Running, publish: Publish) -> None:
    publish(1)
    async with running() as (client, _):
        for _ in range(3):
            await client.post("/generate", json={"prompt": "x", "max_tokens": 8, "temperature": 0})
        await client.post("/generate", json={"prompt": 1})
        await client.get("/health")
        for path in ("/a", "/b", "/c/d"):
            await client.get(path)
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = samples(answer.text)
    requests = {labels: value for (name, labels), value in found.items() if name == "inference_requests_total"}
    assert requests == {
        (("endpoint", "/generate"), ("status", "200")): 3,
        (("endpoint", "/generate"), ("status", "422")): 1,
        (("endpoint", "/health"), ("status", "200")): 1,
        # However many paths there are not, they are one label.
        (("endpoint", "other"), ("status", "404")): 3,
    }
    assert found["inference_texts_total", (("outcome", "length"),)] == 3
    assert found["inference_tokens_drawn_total", ()] == 24
    assert found["inference_prompt_tokens_total", ()] == 3 * 4  # pads to a whole chunk are read, too
    for name in ("time_to_first_token_seconds", "time_per_output_token_seconds", "queue_seconds"):
        assert found[f"inference_{name}_count", ()] == 3
        assert found[f"inference_{name}_sum", ()] > 0
    # Two steps of a single text each.
    assert (found["inference_batch_size_count", ()], found["inference_batch_size_sum", ()]) == (6, 6)
    assert found["inference_slots", ()] > 0
    for name in ("queued", "running", "slots_used", "quarantined"):
        assert found[f"inference_{name}", ()] == 0
    http = (("method", "POST"), ("path", "/generate"), ("status", "200"))
    assert found["inference_http_seconds_count", http] == 3
    assert found["inference_http_seconds_sum", http] > 0


async def test_load_and_quarantine_are_shown_while_they_are(running: Running, publish: Publish) -> None:
    publish(1, max_chunks=1024)
    async with running() as (client, service):
        body = {"prompt": "x", "max_tokens": 4000, "temperature": 0}
        pending = [asyncio.create_task(client.post("/generate", json=body)) for _ in range(2)]

        async def figures() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
            return samples((await client.get("/metrics")).text)

        async def figures_with(slots_used: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
            async with asyncio.timeout(30):
                while True:
                    found = await figures()
                    if found["inference_slots_used", ()] == slots_used:
                        return found

        found = await figures_with(slots_used=2)
        assert found["inference_running", ()] == 2
        assert found["inference_slots", ()] >= 2
        for task in pending:
            task.cancel()
        found = await figures_with(slots_used=0)
        assert found["inference_texts_total", (("outcome", "cancelled"),)] == 2
        publish(2, tokenizer_fingerprint="0000")
        await asyncio.to_thread(service.registry.refresh)
        assert (await figures())["inference_quarantined", ()] == 1
        publish(3)
        await asyncio.to_thread(service.registry.refresh)
        assert (await figures())["inference_swaps_total", ()] == found["inference_swaps_total", ()] + 1


async def test_an_id_is_on_every_answer(running: Running) -> None:
    async with running() as (client, _):
        for path in ("/health", "/nowhere"):
            assert (await client.get(path, headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
        assert len((await client.get("/health")).headers["x-request-id"]) == 32


async def test_a_request_continues_its_callers_trace(running: Running, publish: Publish) -> None:
    publish(1)
    async with collecting() as (collector, endpoint):
        async with running(otel_exporter_otlp_endpoint=endpoint) as (client, service):
            headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "r-1"}
            body = {"prompt": SECRET, "max_tokens": 8, "temperature": 0}
            answer = (await client.post("/generate", json=body, headers=headers)).json()
            await client.get("/health")
            await client.get("/nobodys-business")
            assert service.tracing is not None
            await asyncio.to_thread(service.tracing.close)
        spans = collector.spans()
        server = collector.named("HTTP POST")
        assert server.kind == Span.SPAN_KIND_SERVER
        assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, CALLER)
        for name in ("queue", "prefill", "decode"):
            child = collector.named(name)
            assert child.parent_span_id == server.span_id
            assert server.start_time_unix_nano <= child.start_time_unix_nano <= child.end_time_unix_nano
            # The clocks of engine and spans are compared once a text.
            assert child.end_time_unix_nano <= server.end_time_unix_nano + 5_000_000
        assert collector.named("queue").end_time_unix_nano == collector.named("prefill").start_time_unix_nano
        expected = {
            "http.request.method": "POST",
            "http.route": "/generate",
            "http.response.status_code": 200,
            "latentforge.request_id": "r-1",
            "latentforge.checkpoint": "demo/step-00000001",
            "latentforge.completion_tokens": answer["usage"]["completion_tokens"],
        }
        assert attributes(server).items() >= expected.items()
        assert server.status.code == Status.STATUS_CODE_UNSET
        # Probes would bury everything else.
        assert [s.name for s in spans if s.kind == Span.SPAN_KIND_SERVER] == ["HTTP POST", "HTTP GET"]
        assert collector.named("HTTP GET").trace_id != server.trace_id
        (resource,) = {r.resource.SerializeToString() for q in collector.requests for r in q.resource_spans}
        assert b"inference" in resource
        sent = b"".join(request.SerializeToString() for request in collector.requests)
        assert SECRET.encode() not in sent
        assert b"nobodys-business" not in sent
