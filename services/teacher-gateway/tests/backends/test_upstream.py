import asyncio
import email.utils
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.backends.upstream import LONGEST_BACKOFF_SECONDS, Api, Upstream
from latentforge.gateway.breaker import Breaker
from latentforge.gateway.metrics import Metrics
from tools.venice_server.running import serving

KEY = "sk-very-secret"


@dataclass
class Script:
    """What a real HTTP server answers, one after another, and then 200."""

    answers: deque[Response] = field(default_factory=deque)
    hold: float = 0.0
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    open_now: int = 0
    most_open: int = 0
    left: int = 0
    url: str = ""

    def then(self, status: int, times: int = 1, body: Any = None, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = {"error": "because"} if body is None else body
        self.answers.extend(JSONResponse(content, status, named) for _ in range(times))


@pytest.fixture
def server() -> Iterator[Script]:
    script = Script()

    async def answer(request: Request) -> Response:
        script.headers.append(dict(request.headers))
        script.bodies.append(await request.json() if request.method == "POST" else None)
        script.open_now += 1
        script.most_open = max(script.most_open, script.open_now)
        try:
            ends = time.monotonic() + script.hold
            while time.monotonic() < ends:
                if await request.is_disconnected():
                    script.left += 1
                    break
                await asyncio.sleep(0.01)
        finally:
            script.open_now -= 1
        return script.answers.popleft() if script.answers else JSONResponse({"good": True})

    with serving(Starlette(routes=[Route("/base/thing", answer, methods=["GET", "POST"])])) as url:
        script.url = f"{url}/base"
        yield script


MakeUpstream = Callable[..., Upstream]


@pytest.fixture
async def make_upstream(server: Script) -> AsyncIterator[MakeUpstream]:
    made: list[Upstream] = []

    def make(breaker: Breaker | None = None, metrics: Metrics | None = None, **changes: Any) -> Upstream:
        hooks = {name: changes.pop(name) for name in ("on_rate_limited", "on_success") if name in changes}
        api: dict[str, Any] = {
            "name": "thing",
            "base_url": server.url,
            "url_setting": "THING_URL",
            "key": SecretStr(KEY),
            "key_setting": "THING_KEY",
            "max_requests": 4,
            "max_queued": 8,
            "attempts": 4,
            "timeout": 5.0,
        }
        breaker = breaker or Breaker(1000, 30.0, 30.0)
        made.append(Upstream(Api(**(api | changes)), breaker, metrics or Metrics(), **hooks))
        return made[-1]

    yield make
    for upstream in made:
        await upstream.close()


async def failure(upstream: Upstream) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await upstream.get("/thing")
    return caught.value


async def test_json_goes_there_and_comes_back_with_the_key(make_upstream: Any, server: Script) -> None:
    upstream = make_upstream()
    assert await upstream.get("/thing") == {"good": True}
    assert await upstream.post("/thing", lambda: {"a": [1]}) == {"good": True}
    assert await upstream.post("/thing", dict, read=len) == len(b'{"good":true}')
    assert server.bodies == [None, {"a": [1]}, {}]
    assert all(headers["authorization"] == f"Bearer {KEY}" for headers in server.headers)


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment that answers nobody: nothing listens on port 9."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.usefixtures("proxied")
async def test_a_server_of_this_machine_is_asked_past_every_proxy(make_upstream: Any) -> None:
    assert await make_upstream().get("/thing") == {"good": True}


@pytest.mark.usefixtures("proxied")
async def test_an_error_behind_a_proxy_says_how_to_go_past_it(make_upstream: Any) -> None:
    error = await failure(make_upstream(base_url="http://vllm.example:8000", attempts=1))
    assert "http_proxy sends this through a proxy, no_proxy=vllm.example would not" in str(error)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_what_may_pass_is_tried_again_after_a_growing_pause(
    make_upstream: Any, server: Script, fake_time: Any, status: int
) -> None:
    server.then(status, 3)
    payloads = iter(range(10))
    assert await make_upstream().post("/thing", lambda: {"n": next(payloads)}) == {"good": True}
    assert [body["n"] for body in server.bodies] == [0, 1, 2, 3]
    bounds = [1.0, 2.0, 4.0]
    assert len(fake_time.slept) == 3
    assert all(bound / 2 <= pause <= bound for pause, bound in zip(fake_time.slept, bounds, strict=True))


async def test_pauses_stay_below_their_limit_and_differ(make_upstream: Any, server: Script, fake_time: Any) -> None:
    server.then(503, 40)
    error = await failure(make_upstream(attempts=40))
    assert error.kind is FailureKind.GONE
    assert len(fake_time.slept) == 39
    assert max(fake_time.slept) <= LONGEST_BACKOFF_SECONDS
    late = fake_time.slept[8:]
    assert min(late) >= LONGEST_BACKOFF_SECONDS / 2
    assert len(set(late)) == len(late)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 415, 422, 501])
async def test_what_will_not_pass_is_tried_once(make_upstream: Any, server: Script, status: int) -> None:
    server.then(status, 5)
    error = await failure(make_upstream())
    assert f"THING_URL={server.url} answers {status}: because" in str(error)
    assert len(server.headers) == 1


@pytest.mark.parametrize("as_date", [False, True])
async def test_retry_after_is_kept_to(make_upstream: Any, server: Script, fake_time: Any, as_date: bool) -> None:
    wait = email.utils.formatdate(time.time() + 12, usegmt=True) if as_date else "12"
    server.then(503, retry_after=wait)
    await make_upstream().get("/thing")
    (slept,) = fake_time.slept
    assert 10.5 <= slept <= 12


async def test_a_longer_wait_than_the_limit_is_the_callers_to_make(
    make_upstream: Any, server: Script, fake_time: Any
) -> None:
    server.then(429, 9, retry_after="60")
    upstream = make_upstream()
    error = await failure(upstream)
    assert (error.kind, error.retry_after) == (FailureKind.BUSY, 60)
    error = await failure(upstream)
    assert error.kind is FailureKind.BUSY
    assert error.retry_after == pytest.approx(60, abs=1)
    assert "allows no more requests for" in str(error)
    assert len(server.headers) == 1
    assert not fake_time.slept


async def test_a_429_makes_everybody_wait(make_upstream: Any, server: Script, fake_time: Any) -> None:
    server.then(429, retry_after="20")
    upstream = make_upstream(attempts=1)
    await failure(upstream)
    await upstream.get("/thing")
    assert sum(fake_time.slept) == pytest.approx(20, abs=0.5)


@pytest.mark.parametrize("of", ["requests", "tokens"])
async def test_requests_wait_until_the_rate_limit_is_reset(
    make_upstream: Any, server: Script, fake_time: Any, of: str
) -> None:
    """Reset of requests is a Unix time, that of tokens a number of seconds."""
    reset = time.time() + 15 if of == "requests" else 15
    limits = {f"x-ratelimit-remaining-{of}": "0", f"x-ratelimit-reset-{of}": f"{reset}"}
    server.answers.append(JSONResponse({}, 200, limits))
    upstream = make_upstream()
    await upstream.get("/thing")
    assert not fake_time.slept
    await upstream.get("/thing")
    assert sum(fake_time.slept) == pytest.approx(15, abs=0.5)


async def test_a_reset_matters_only_when_nothing_remains_or_the_request_was_refused(
    make_upstream: Any, server: Script, fake_time: Any
) -> None:
    reset = str(time.time() + 9)
    server.then(200, x_ratelimit_remaining_requests="1", x_ratelimit_reset_requests=reset)
    upstream = make_upstream()
    await upstream.get("/thing")
    await upstream.get("/thing")
    assert not fake_time.slept
    server.then(429, x_ratelimit_reset_requests=reset)
    await upstream.get("/thing")
    assert sum(fake_time.slept) == pytest.approx(9, abs=1)
    server.then(200, x_ratelimit_remaining_requests="none", x_ratelimit_reset_requests="soon")
    await upstream.get("/thing")


async def test_callbacks_hear_of_limits_and_successes(make_upstream: Any, server: Script, fake_time: Any) -> None:
    heard: list[str] = []
    server.then(429, 2)
    upstream = make_upstream(on_rate_limited=lambda: heard.append("429"), on_success=lambda: heard.append("200"))
    await upstream.get("/thing")
    assert heard == ["429", "429", "200"]


async def test_no_more_requests_are_open_than_allowed_and_no_more_wait(make_upstream: Any, server: Script) -> None:
    server.hold = 0.2
    upstream = make_upstream(max_requests=2, max_queued=3)
    outcomes = await asyncio.gather(*(upstream.get("/thing") for _ in range(7)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, BackendError)]
    assert len(refused) == 2
    assert len(server.headers) == 5
    assert server.most_open == 2
    assert refused[0].kind is FailureKind.BUSY
    assert refused[0].retry_after == 1.0
    assert "thing has 2 requests open and 3 queued; ask again later" in str(refused[0])
    assert await upstream.get("/thing") == {"good": True}


async def test_an_open_breaker_sends_nothing_and_says_for_how_long(
    make_upstream: Any, server: Script, fake_time: Any
) -> None:
    server.then(503, 99)
    upstream = make_upstream(Breaker(3, 30.0, 30.0), attempts=10)
    error = await failure(upstream)
    assert error.kind is FailureKind.GONE
    assert "failed too often and is left alone for 30 s" in str(error)
    assert error.retry_after == pytest.approx(30, abs=1)
    assert len(server.headers) == 3
    await failure(upstream)
    assert len(server.headers) == 3


@pytest.mark.parametrize(("counts", "sent"), [(True, 3), (False, 9)])
async def test_refusals_open_the_breaker_only_where_the_api_counts_them(
    make_upstream: Any, server: Script, counts: bool, sent: int
) -> None:
    server.then(400, 99)
    upstream = make_upstream(Breaker(3, 30.0, 30.0), counts_refusals=counts)
    for _ in range(9):
        await failure(upstream)
    assert len(server.headers) == sent


async def test_cancelling_closes_the_request_and_frees_its_place(
    make_upstream: Any, server: Script, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    server.hold = 20
    breaker = Breaker(1, 30.0, 30.0)
    upstream = make_upstream(breaker, max_requests=1, max_queued=1)
    task = asyncio.create_task(upstream.get("/thing"))
    await eventually(lambda: server.open_now == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: server.left == 1)
    server.hold = 0
    assert await upstream.get("/thing") == {"good": True}
    assert not breaker.is_open


async def test_cancelling_one_that_waits_lets_others_wait(make_upstream: Any, server: Script) -> None:
    server.hold = 0.2
    upstream = make_upstream(max_requests=1, max_queued=1)
    first = asyncio.create_task(upstream.get("/thing"))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(upstream.get("/thing"))
    await asyncio.sleep(0.05)
    second.cancel()
    third = asyncio.create_task(upstream.get("/thing"))
    assert list(await asyncio.gather(first, third)) == [{"good": True}] * 2


async def test_a_server_that_does_not_answer_is_too_slow(make_upstream: Any, server: Script, fake_time: Any) -> None:
    server.hold = 5
    error = await failure(make_upstream(timeout=0.1, attempts=2))
    assert error.kind is FailureKind.TOO_SLOW
    assert str(error) == f"THING_URL={server.url} did not answer within 0.1 s"
    assert len(server.headers) == 2


async def test_a_closed_port_is_gone_and_tried_again(
    make_upstream: Any, free_port: Callable[[], int], fake_time: Any
) -> None:
    error = await failure(make_upstream(base_url=f"http://127.0.0.1:{free_port()}"))
    assert error.kind is FailureKind.GONE
    assert "cannot be reached" in str(error)
    assert len(fake_time.slept) == 3


async def test_answers_that_are_no_json_are_broken(make_upstream: Any, server: Script) -> None:
    server.answers.append(Response(b"<html>", 200))
    error = await failure(make_upstream())
    assert error.kind is FailureKind.BROKEN
    assert "with something else than JSON" in str(error)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": "text"}, "text"),
        ({"error": {"message": "inner", "type": "t", "param": None, "code": 1}}, "inner"),
        ({"message": "flat"}, "flat"),
        ({"detail": "fast"}, "fast"),
        ([1], "[1]"),
        ({"error": "x" * 5000}, "x" * 300),
    ],
)
async def test_error_bodies_of_every_shape_are_read(make_upstream: Any, server: Script, body: Any, said: str) -> None:
    server.then(400, body=body)
    assert str(await failure(make_upstream())).endswith(f"answers 400: {said}")


async def test_the_key_and_passwords_are_in_no_error_and_no_log(
    make_upstream: Any, server: Script, fake_time: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "pa55word"
    host = server.url.removeprefix("http://")
    errors = []
    for base in (f"http://user:{secret}@{host}", f"http://user:{secret}@127.0.0.1:1/base"):
        upstream = make_upstream(base_url=base, attempts=2)
        server.then(401, body={"error": {"message": f"Incorrect API key provided: {KEY}"}})
        server.then(500, 2, body={"error": f"cannot forward Bearer {KEY}"})
        errors += [str(await failure(upstream)), str(await failure(upstream))]
        server.answers.clear()
    assert "Incorrect API key provided: ***; set THING_KEY" in errors[0]
    assert len(caplog.records) > 5, "nothing was logged, so nothing is shown"
    for text in [*errors, caplog.text]:
        assert KEY not in text
        assert secret not in text
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_a_password_in_the_url_is_used_where_there_is_no_key(make_upstream: Any, server: Script) -> None:
    host = server.url.removeprefix("http://")
    await make_upstream(base_url=f"http://user:pass@{host}", key=None).get("/thing")
    assert server.headers[0]["authorization"].startswith("Basic ")


@pytest.mark.parametrize("url", ["x", "ftp://host", "http://", "http://host:port", "http://{host}:port"])
def test_a_url_that_is_none_is_refused_with_what_is_allowed(url: str) -> None:
    api = Api("thing", url, "THING_URL", None, "THING_KEY", 1, 1, 1, 1.0)
    with pytest.raises(SettingsError, match=r"THING_URL malformed .*allowed is http\(s\)://host") as caught:
        Upstream(api, Breaker(1, 1.0, 1.0), Metrics())
    assert repr(url) in str(caught.value)


async def test_requests_failures_and_what_is_open_are_counted(
    make_upstream: Any, server: Script, fake_time: Any
) -> None:
    metrics = Metrics()
    server.then(503)
    server.then(404)
    await failure(make_upstream(metrics=metrics))
    value = metrics.registry.get_sample_value
    for label in ("503", "404"):
        assert value("gateway_upstream_errors_total", {"api": "thing", "error": label}) == 1
    assert value("gateway_upstream_seconds_count", {"api": "thing"}) == 2
    assert value("gateway_upstream_in_flight", {"api": "thing"}) == 0
