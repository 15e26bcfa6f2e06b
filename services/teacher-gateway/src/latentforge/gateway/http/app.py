"""The HTTP API: routes of vLLM's and TRL's protocols over the same teacher as gRPC."""

import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from latentforge.core.http.bodies import BodyGuard, BodyRules
from latentforge.core.http.disconnects import ClientGoneError, while_connected
from latentforge.core.http.shutdown import Shutdown
from latentforge.core.tracing import Tracing
from latentforge.gateway.http.access import has_key
from latentforge.gateway.http.call import HttpCall, HttpCalls, call_of
from latentforge.gateway.http.completion_request import read_completion_request
from latentforge.gateway.http.completions import Completions
from latentforge.gateway.http.decoding import Workers
from latentforge.gateway.http.errors import CLIENT_GONE, HttpError, http_error_of
from latentforge.gateway.http.sequence_logprobs import read_sequence_logprobs_request, sequence_logprobs
from latentforge.gateway.keys import Keys
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.rpc.errors import ApiError
from latentforge.gateway.rpc.host import TeacherHost, draining
from latentforge.gateway.rpc.validation import check_revision
from latentforge.gateway.scoring.teacher import Teacher
from latentforge.gateway.settings import GatewaySettings

# The revision that rows must be of.
_EXPECTED_REVISION = "x-expected-revision"

Work = Callable[[bytes, Teacher, HttpCall], Coroutine[Any, Any, Response]]

# Of a teacher that was found not to answer: it is looked for again sooner than that.
_RETRY_SECONDS = "5"


def create_app(
    settings: GatewaySettings,
    keys: Keys,
    host: TeacherHost,
    shutdown: Shutdown,
    metrics: Metrics,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The application; it answers 503 until ``host`` has a teacher, and once it drains.

    With ``shutdown`` it waits for no body any more.
    """
    app = FastAPI(title="LatentForge teacher-gateway", openapi_url=None, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False
    workers = Workers()
    completions = Completions(host, workers, settings.max_tokens_in_flight)
    started = int(time.time())

    async def health(request: Request) -> Response:
        now = _ready(host).health
        # Problems name hosts and paths: they are for those who may call.
        tell = has_key(keys, request.headers.get("authorization"))
        if now.teacher:
            why = now.teacher if tell else "the teacher would not answer now; send the gateway's key to be told why"
            raise HttpError(503, "teacher_unhealthy", why, headers={"retry-after": _RETRY_SECONDS})
        # A cache that fails costs time and no answer.
        return _json({"status": "ok", "problems": now.problems} if tell else {"status": "ok"})

    async def live(request: Request) -> Response:
        return _json({"status": "ok"})

    async def models(request: Request) -> Response:
        return _json(_models(_ready(host), started))

    async def complete(body: bytes, teacher: Teacher, call: HttpCall) -> Response:
        request = await workers.run_large(len(body), read_completion_request, body)
        answer = await completions.answer(request, teacher, call)
        return _answer(answer.body, answer.num_cached, answer.num_scored)

    async def score(body: bytes, teacher: Teacher, call: HttpCall) -> Response:
        request = await workers.run_large(len(body), read_sequence_logprobs_request, body)
        answer, scored = await sequence_logprobs(request, teacher, workers, call)
        return _answer(answer, sum(one.cache_hit for one in scored), len(scored))

    def answering(work: Work) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            _ready(host)
            body = await request.body()
            try:
                async with host.call() as teacher:
                    check_revision(request.headers.get(_EXPECTED_REVISION, ""), teacher.description)
                    return await while_connected(request.receive, work(body, teacher, call_of(request)))
            except ApiError as error:
                raise http_error_of(error) from None

        return answer

    # Some clients write the slash, and few follow a redirection of a POST.
    for path in ("/health", "/health/", "/ping"):
        app.add_api_route(path, health, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route("/live", live, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route("/v1/models", models, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route("/v1/completions", answering(complete), methods=["POST"], response_model=None)
    for path in ("/get_sequence_logprobs/", "/get_sequence_logprobs"):
        app.add_api_route(path, answering(score), methods=["POST"], response_model=None)
    app.add_exception_handler(HttpError, _refused)
    app.add_exception_handler(HTTPException, _unknown)
    for gone in (ClientDisconnect, ClientGoneError):
        app.add_exception_handler(gone, _gone)
    app.add_middleware(BodyGuard, rules=_body_rules(settings), shutdown=shutdown)
    app.add_middleware(HttpCalls, metrics=metrics, keys=keys, tracing=tracing)
    return app


def _body_rules(settings: GatewaySettings) -> BodyRules:
    limit = settings.gateway_http_max_body_bytes
    return BodyRules(
        lambda path: limit,
        settings.gateway_http_body_seconds,
        "GATEWAY_HTTP_BODY_SECONDS",
        HttpError,
        lambda: http_error_of(draining()),
        advice="send fewer or shorter sequences at a time, or raise GATEWAY_HTTP_MAX_BODY_BYTES",
        told=_note_refusal,
    )


def _note_refusal(scope: Scope, refusal: HttpError) -> None:
    call_of(Request(scope)).code = refusal.code


def _ready(host: TeacherHost) -> Teacher:
    try:
        return host.ready()
    except ApiError as error:
        raise http_error_of(error) from None


def _models(teacher: Teacher, created: int) -> dict[str, Any]:
    about = teacher.description
    model = {
        "id": about.model,
        "object": "model",
        "created": created,
        "owned_by": "latentforge",
        "root": about.model,
        "parent": None,
        "max_model_len": about.max_sequence_length,
        "latentforge": {
            "backend": about.backend,
            "revision": about.revision,
            "engine": about.engine,
            "can_score": about.can_score,
            "can_generate": about.can_generate,
            "max_top_k": about.max_top_k,
            "vocab_size": about.vocab_size,
            "tokenizer_fingerprint": about.tokenizer_fingerprint,
        },
    }
    return {"object": "list", "data": [model]}


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def _answer(body: bytes, num_cached: int, num_scored: int) -> Response:
    return Response(body, media_type="application/json", headers={"x-cache-hits": f"{num_cached}/{num_scored}"})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    call_of(request).code = error.code
    return error.response()


async def _unknown(request: Request, error: Exception) -> Response:
    """No such path, or another method."""
    assert isinstance(error, HTTPException)
    served = "GET /health, GET /live, GET /v1/models, POST /v1/completions and POST /get_sequence_logprobs/"
    code = str(error.detail).lower().replace(" ", "_")
    answer = HttpError(error.status_code, code, f"{error.detail}; this gateway serves {served}")
    answer.headers = dict(error.headers or {})
    return await _refused(request, answer)


async def _gone(request: Request, error: Exception) -> Response:
    call_of(request).code = "client_gone"
    return Response(status_code=CLIENT_GONE)
