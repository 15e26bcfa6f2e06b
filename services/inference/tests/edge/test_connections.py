import json
import time
from contextlib import ExitStack

import httpx

from latentforge.core.http.connections import ConnectionLimits

from .conftest import RunningServer, Serve, read_all, read_answer


def error_of(answer: bytes) -> dict[str, str]:
    error: dict[str, str] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return error


def limits(**changes: float) -> ConnectionLimits:
    values = {"max_connections": 100, "head_seconds": 20.0, "body_seconds": 20.0} | changes
    seconds = values["head_seconds"], values["body_seconds"]
    return ConnectionLimits(int(values["max_connections"]), *seconds, "INFERENCE_MAX_CONNECTIONS", 20.0)


def test_headers_that_do_not_come_are_answered_408(serve: Serve) -> None:
    with serve(limits=limits(head_seconds=0.2)) as running, running.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert error_of(answer)["code"] == "headers_timeout"


def test_a_connection_that_says_nothing_is_closed(serve: Serve) -> None:
    with serve(limits=limits(head_seconds=0.2)) as running, running.connect() as connection:
        assert read_all(connection) == b""


def test_a_second_request_on_a_connection_has_its_own_time(serve: Serve) -> None:
    with serve(limits=limits(head_seconds=1.5)) as running, running.connect() as connection:
        for _ in range(3):
            connection.sendall(b"GET /status HTTP/1.1\r\nhost: x\r\n")
            time.sleep(0.6)
            connection.sendall(b"\r\n")
            assert read_answer(connection).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /status HTTP/1.1\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


def test_headers_are_bounded_in_bytes(serve: Serve) -> None:
    with serve() as running, running.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        line = b"x-filler: " + b"a" * 8000 + b"\r\n"
        for _ in range(9):
            connection.sendall(line)
            time.sleep(0.02)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert error_of(answer)["code"] == "headers_too_large"


def test_what_is_no_http_is_answered_400_in_the_apis_shape(serve: Serve) -> None:
    for sent in (b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET http://[ HTTP/1.1\r\nhost: x\r\n\r\n"):
        with serve() as running, running.connect() as connection:
            connection.sendall(sent)
            answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 400 "), sent
        assert error_of(answer)["code"] == "invalid_http"


def test_more_connections_than_may_be_open_are_answered_503_and_the_others_go_on(serve: Serve) -> None:
    with serve(limits=limits(max_connections=5)) as running, ExitStack() as stack:
        with httpx.Client(base_url=running.url) as client:
            assert client.get("/status").status_code == 200
            for _ in range(4):
                connection = stack.enter_context(running.connect())
                connection.sendall(b"POST /generate HTTP/1.1\r\n")
            refused = stack.enter_context(running.connect())
            answer = read_all(refused)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert error_of(answer)["code"] == "too_many_connections"
            assert "INFERENCE_MAX_CONNECTIONS" in error_of(answer)["message"]
            assert client.get("/status").status_code == 200
        stack.close()
        _until_fewer(running, 5)
        assert httpx.get(f"{running.url}/status").status_code == 200


def _until_fewer(running: RunningServer, num: int) -> None:
    end = time.monotonic() + 20
    while len(running.server.server_state.connections) >= num:
        assert time.monotonic() < end
        time.sleep(0.01)
