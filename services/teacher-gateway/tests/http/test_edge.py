"""What stands around the HTTP API: keys, ids, bounds, its start and its end."""

import asyncio
import base64
import contextlib
import json
import logging
import re
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from latentforge.core.http import bodies
from latentforge.core.settings import SettingsError
from latentforge.gateway.main import Gateway, serve
from latentforge.gateway.scoring.callers import current_caller
from latentforge.teacher_client.client import TeacherClient

KEY = "s3cret-key"
SCORE = {"prompt": [5, 6, 7], "max_tokens": 1, "prompt_logprobs": 2}


@pytest.mark.parametrize("path", ["/health", "/health/", "/ping"])
async def test_health_says_whether_the_teacher_answers(make_settings: Any, path: str) -> None:
    gateway = Gateway(make_settings(gateway_http_port=0, gateway_api_key=KEY))
    await gateway.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.http_port}", trust_env=False) as client:
            loading = await client.get(path)
            assert (loading.status_code, loading.json()["error"]["code"]) == (503, "teacher_loading")
            assert int(loading.headers["retry-after"]) >= 1
            await gateway.load()
            assert (await client.get(path)).status_code == 200
            head = await client.head(path)
            assert (head.status_code, head.content) == (200, b"")
    finally:
        await gateway.stop()


async def test_without_a_port_nothing_listens(running: Any) -> None:
    assert running.gateway.http_port is None


async def test_a_port_that_is_taken_is_an_error_that_names_it(http: Any, make_settings: Any) -> None:
    port = http.running.gateway.http_port
    with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port} for HTTP .*set GATEWAY_HTTP_PORT"):
        await serve(make_settings(gateway_http_port=port))


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "key_missing"),
        (f"Bearer {KEY}x", "key_wrong"),
        ("Bearer", "key_wrong"),
        (KEY, "key_wrong"),
        ("Basic " + base64.b64encode(f"{KEY}:".encode()).decode(), "key_wrong"),
        ("Basic ?", "key_wrong"),
        ("Bearer żółć", "key_wrong"),
    ],
)
async def test_who_lacks_the_key_is_told_what_to_send(run_http: Any, header: str | None, code: str) -> None:
    headers = {} if header is None else {"authorization": header.encode()}
    async with run_http(gateway_api_key=KEY) as http:
        for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("POST", "/get_sequence_logprobs/")):
            answer = await http.client.request(method, path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == code
            assert "authorization: Bearer" in answer.json()["error"]["message"]
            assert KEY not in answer.text
        assert (await http.client.get("/health", headers=headers)).status_code == 200
    assert http.running.backend.scored == []


async def test_the_key_opens_as_a_bearers_and_as_the_password_of_a_url(run_http: Any) -> None:
    async with run_http(gateway_api_key=KEY) as http:
        for auth in ({"headers": {"authorization": f"bearer {KEY}"}}, {"auth": ("any", KEY)}):
            assert (await http.client.post("/v1/completions", json=SCORE, **auth)).status_code == 200


async def test_a_named_keys_quota_holds_here_too(run_http: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'[[key]]\nname = "trainer"\nkey = "{KEY}"\ntokens_per_minute = 1\n')
    async with run_http(gateway_keys_file=file) as http:
        http.client.headers["authorization"] = f"Bearer {KEY}"
        assert (await http.client.post("/v1/completions", json=SCORE)).status_code == 200
        refused = await http.client.post("/v1/completions", json=SCORE | {"prompt": [9, 8, 7]})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "the quota of 1 tokens a minute is used up" in refused.json()["error"]["message"]
        value = http.running.gateway.metrics.registry.get_sample_value
        assert value("gateway_key_tokens_total", {"key": "trainer"}) == 3


async def test_a_caller_is_known_by_his_connection_whatever_his_headers_say(http: Any) -> None:
    inner, seen = http.running.backend.inner, []
    plain = inner.score

    async def score(sequences: Any, top_k: int) -> Any:
        seen.append(current_caller().name)
        return await plain(sequences, top_k)

    inner.score = score
    headers = {"x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https"}
    assert (await http.client.post("/v1/completions", json=SCORE, headers=headers)).status_code == 200
    assert [name.rpartition(":")[0] for name in seen] == ["http:127.0.0.1"]


async def test_requests_have_ids_metrics_and_a_line_without_what_was_sent(
    http: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    answer = await http.client.post("/v1/completions", json={"prompt": "a secret"}, headers={"x-request-id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    await http.client.post("/v1/completions", json=SCORE)
    unnamed = await http.client.post("/secret/path", headers={"x-request-id": "no good\u00fc".encode()})
    assert (unnamed.status_code, unnamed.json()["error"]["code"]) == (404, "not_found")
    assert len(unnamed.headers["x-request-id"]) == 32
    assert (await http.client.get("/v1/completions")).status_code == 405
    said = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("latentforge"))
    assert "POST /v1/completions 200 in " in said
    assert ": 3 tokens, 2 rows" in said
    assert "secret" not in said
    value = http.running.gateway.metrics.registry.get_sample_value
    assert value("gateway_http_requests_total", {"path": "/v1/completions", "code": "200"}) == 2
    assert value("gateway_http_requests_total", {"path": "other", "code": "404"}) == 1
    assert value("gateway_http_request_seconds_count", {"path": "/v1/completions"}) == 3
    assert value("gateway_in_flight") == 0


async def test_what_nobody_foresaw_is_500_and_told_in_the_log_alone(
    http: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("latentforge.gateway.http.completions.score_all", fail)
    answer = await http.client.post("/v1/completions", json=SCORE, headers={"x-request-id": "mine"})
    assert answer.status_code == 500
    assert "under request id mine" in answer.json()["error"]["message"]
    assert "RuntimeError" in caplog.text
    assert "secret" not in answer.text + caplog.text


async def send(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """What a gateway answers to raw bytes, until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


def error_in(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log's lines of requests give as reasons, in order."""
    fields = [getattr(record, "fields", {}) for record in caplog.records]
    return [one["reason"] for one in fields if "reason" in one]


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"


async def test_a_body_is_refused_by_its_length_before_it_is_read(
    run_http: Any, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with run_http(gateway_http_max_body_bytes=10_000) as http:
        port = http.running.gateway.http_port
        told = await send(port, HEAD + b"content-length: 10001\r\n\r\n" + b"x" * 10_001)
        assert told.startswith(b"HTTP/1.1 413 ")
        assert "GATEWAY_HTTP_MAX_BODY_BYTES" in error_in(told)["message"]
        chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
        chunked = await send(port, HEAD + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 4, b"0\r\n\r\n")
        assert chunked.startswith(b"HTTP/1.1 413 ")
        # One that is all there is answered before the connection is reset, however long it is.
        big = await http.client.post("/v1/completions", content=b" " * 3_000_000)
        assert (big.status_code, big.json()["error"]["code"]) == (413, "body_too_large")
        # The log says it as of every refusal, wherever it is found.
        await eventually(lambda: reasons(caplog) == ["body_too_large"] * 3)
        assert (await http.client.post("/v1/completions", json=SCORE)).status_code == 200


async def test_who_sends_slowly_is_let_go(run_http: Any) -> None:
    async with run_http(gateway_http_body_seconds=0.3) as http:
        port = http.running.gateway.http_port
        body = await send(port, HEAD + b"content-length: 100\r\n\r\n{")
        assert body.startswith(b"HTTP/1.1 408 ")
        assert "GATEWAY_HTTP_BODY_SECONDS" in error_in(body)["message"]
        assert (await send(port, HEAD)).startswith(b"HTTP/1.1 408 ")
        assert await send(port) == b""


async def test_large_bodies_that_do_not_come_hold_up_large_ones_alone(
    run_http: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setattr(bodies, "_LARGE_AT_ONCE", 2)
    plain, made = bodies._Body.__init__, []

    def watched(body: Any, *arguments: Any) -> None:
        plain(body, *arguments)
        made.append(body)

    def num_large() -> int:
        return sum(body._num_bytes > bodies.SMALL_BYTES for body in made)

    monkeypatch.setattr(bodies._Body, "__init__", watched)
    async with run_http() as http:
        port = http.running.gateway.http_port
        part = HEAD + b"content-length: 1000000\r\n\r\n" + b" " * 200_000
        slow = [asyncio.create_task(send(port, part)) for _ in range(2)]
        await eventually(lambda: num_large() == 2)
        body = json.dumps(SCORE).encode() + b" " * 200_000
        head = HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        whole = asyncio.create_task(send(port, head + body[:-9], body[-9:], pause=0.2))
        await eventually(lambda: num_large() == 3)
        assert (await http.client.post("/v1/completions", json=SCORE)).status_code == 200
        # Its rest is there, and not read.
        await asyncio.wait({whole}, timeout=0.6)
        assert not any(task.done() for task in [*slow, whole])
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert (await whole).startswith(b"HTTP/1.1 200 ")


async def test_connections_are_bounded(run_http: Any, eventually: Any) -> None:
    async with run_http(gateway_http_max_connections=2) as http:
        port = http.running.gateway.http_port
        assert (await http.client.get("/health")).status_code == 200
        _, idle = await asyncio.open_connection("127.0.0.1", port)
        connections = http.running.gateway._http_server._server.server_state.connections
        await eventually(lambda: len(connections) == 2)
        refused = await send(port, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert "GATEWAY_HTTP_MAX_CONNECTIONS" in error_in(refused)["message"]
        idle.close()
        await eventually(lambda: len(connections) == 1)
        assert (await http.client.get("/health")).status_code == 200


async def test_what_runs_is_answered_at_the_end_and_nothing_new_begins(http: Any, eventually: Any) -> None:
    http.running.backend.gate.clear()
    asked = asyncio.create_task(http.client.post("/v1/completions", json=SCORE))
    await eventually(lambda: len(http.running.backend.scored) == 1)
    ending = asyncio.create_task(http.running.stop())
    refused = httpx.Response(200)
    while refused.status_code == 200:
        refused = await http.client.get("/health")
    assert refused.json()["error"]["code"] == "draining"
    assert (await http.client.post("/v1/completions", json=SCORE)).status_code == 503
    http.running.backend.gate.set()
    assert (await asked).status_code == 200
    await ending
    with pytest.raises(httpx.TransportError):
        await http.client.get("/health")


async def test_the_end_waits_for_no_body_that_does_not_come(run_http: Any, eventually: Any) -> None:
    async with run_http(gateway_http_body_seconds=60) as http:
        half = asyncio.create_task(send(http.running.gateway.http_port, HEAD + b"content-length: 100\r\n\r\n{"))
        value = http.running.gateway.metrics.registry.get_sample_value
        await eventually(lambda: value("gateway_in_flight") == 1)
        await asyncio.wait_for(http.running.stop(), 10)
        answer = await half
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert error_in(answer)["code"] == "draining"


@pytest.mark.parametrize("grace", [20.0, 0.0])
async def test_the_end_waits_for_answers_to_be_read_while_there_is_grace(
    run_http: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, grace: float
) -> None:
    monkeypatch.setattr("latentforge.gateway.http.server._WRITE_SECONDS", 0.1)
    body = json.dumps(
        {"prompt": [[at % 300 for at in range(500)]] * 8, "max_tokens": 1, "prompt_logprobs": 64}
    ).encode()
    loop = asyncio.get_running_loop()
    async with run_http(shutdown_grace_seconds=grace) as http:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", http.running.gateway.http_port))
            await loop.sock_sendall(client, HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
            received = bytearray(await loop.sock_recv(client, 1000))
            ending = asyncio.create_task(http.running.stop())
            done, _ = await asyncio.wait({ending}, timeout=2 if grace else 20)
            assert bool(done) == (not grace)
            with contextlib.suppress(ConnectionResetError):
                while piece := await loop.sock_recv(client, 2**18):
                    received += piece
            await ending
    head, _, content = bytes(received).partition(b"\r\n\r\n")
    told = re.search(rb"content-length: (\d+)", head)
    assert told is not None
    size = int(told[1])
    assert (len(content) == size) == bool(grace)
    assert ("answers over HTTP were cut off" in caplog.text) == (not grace)


@pytest.fixture
def tls(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=gateway", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "cert.pem", tmp_path / "key.pem"


async def test_it_speaks_tls_where_grpc_does(run_gateway: Any, tls: tuple[Path, Path]) -> None:
    certificate, key = tls
    async with run_gateway(gateway_http_port=0, gateway_tls_cert=certificate, gateway_tls_key=key) as running:
        url = f"https://127.0.0.1:{running.gateway.http_port}"
        context = ssl.create_default_context(cafile=str(certificate))
        async with httpx.AsyncClient(base_url=url, verify=context, trust_env=False) as client:
            assert (await client.post("/v1/completions", json=SCORE)).status_code == 200
        async with TeacherClient(running.target, timeout=10, tls_ca=certificate) as teacher:
            assert len(await teacher.score([5, 6, 7], 2)) == 2
