"""GET /models and POST /chat/completions, under /api/v1."""

import asyncio
import json
import secrets
import time
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from latentforge.core.errors import describe_errors
from tools.venice_server.answers import AnswerMaker
from tools.venice_server.control import Fault, FaultControl, RateLimits
from tools.venice_server.schema import ChatRequest
from tools.venice_server.text_model import TextModel

MODEL = "local-teacher"
MUTE_MODEL = "local-teacher-without-logprobs"
_MAX_BODY_BYTES = 1 << 20
_MODEL_TYPES = ("text", "image", "video", "music", "tts", "asr", "embedding", "upscale", "inpaint", "code", "all")
_VENICE_PROMPT = {"role": "system", "content": "You are Venice, a private and uncensored assistant."}


class _Left(Exception):  # noqa: N818
    """The caller closed the connection."""


class VeniceServer:
    """The ASGI application ``app``, to be driven through ``control``."""

    def __init__(self, model: TextModel, control: FaultControl | None = None) -> None:
        self.control = control or FaultControl()
        self._answers = AnswerMaker(model, self.control)
        self._model = model
        self._limits = RateLimits(self.control)
        routes = [
            Route("/api/v1/models", self._models, methods=["GET"]),
            Route("/api/v1/chat/completions", self._chat, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    @property
    def blocked(self) -> bool:
        return self._limits.blocked

    async def _models(self, request: Request) -> Response:
        given = request.headers.get("authorization")
        if given is not None and given != f"Bearer {self.control.key}":
            return self._refused(Fault(401, "Authentication failed"))
        kind = request.query_params.get("type", "text")
        if kind not in _MODEL_TYPES:
            return self._refused(Fault(400, f"Invalid request parameters: type is one of {', '.join(_MODEL_TYPES)}"))
        data = []
        if kind in ("text", "code", "all"):
            data += [self._listed(MODEL, logprobs=True), self._listed(MUTE_MODEL, logprobs=False)]
        return JSONResponse({"object": "list", "type": kind, "data": data})

    def _listed(self, name: str, *, logprobs: bool) -> dict[str, Any]:
        abilities = (
            "optimizedForCode supportsFunctionCalling supportsAudioInput supportsReasoning supportsReasoningEffort "
            "supportsResponseSchema supportsMultipleImages supportsVision supportsVideoInput supportsWebSearch "
            "supportsTeeAttestation supportsE2EE supportsXSearch"
        )
        capabilities: dict[str, Any] = dict.fromkeys(abilities.split(), False)
        capabilities |= {"quantization": "not-available", "supportsLogProbs": logprobs}
        spec = {
            "name": name,
            "privacy": "private",
            "description": "A local model that is served for tests.",
            "modelSource": "",
            "offline": False,
            "availableContextTokens": self._model.context_tokens,
            "maxCompletionTokens": self._model.context_tokens,
            "capabilities": capabilities,
            "constraints": {"temperature": {"default": 1}, "top_p": {"default": 1}},
            "traits": [],
        }
        if (price := self.control.price) is not None:
            spec["pricing"] = {
                name: {"usd": usd, "diem": usd} for name, usd in zip(("input", "output"), price, strict=True)
            }
        created = 1_772_668_800
        return {
            "id": name,
            "object": "model",
            "type": "text",
            "owned_by": "venice.ai",
            "created": created,
            "model_spec": spec,
        }

    async def _chat(self, request: Request) -> Response:
        control = self.control
        control.open_now += 1
        control.most_open = max(control.most_open, control.open_now)
        try:
            answer = await self._answered(request)
        except (_Left, ClientDisconnect):
            control.left += 1
            return Response(status_code=499)
        finally:
            control.open_now -= 1
        if isinstance(answer, Fault):
            return self._refused(answer)
        control.statuses.append(200)
        return JSONResponse(answer, headers=self._limits.headers())

    def _refused(self, fault: Fault) -> Response:
        self.control.statuses.append(fault.status)
        self._limits.ended(fault.status)
        headers = self._limits.headers() | dict(fault.headers)
        return JSONResponse({"error": fault.error}, fault.status, headers)

    async def _answered(self, request: Request) -> dict[str, Any] | Fault:
        control = self.control
        if request.headers.get("authorization") != f"Bearer {control.key}":
            return Fault(401, "Authentication failed")
        if refusal := self._limits.refusal():
            return refusal
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return Fault(415, "Invalid request content-type")
        body = await request.body()
        if len(body) > _MAX_BODY_BYTES:
            return Fault(413, "The request payload is too large. Please reduce the size of your request.")
        try:
            content = json.loads(body)
            chat = ChatRequest.model_validate(content)
        except json.JSONDecodeError:
            return Fault(400, "Invalid request parameters")
        except ValidationError as error:
            return Fault(400, f"Invalid request parameters: {'; '.join(describe_errors(error, values=False)[:3])}")
        control.bodies.append(content)
        if chat.model not in (MODEL, MUTE_MODEL):
            return Fault(404, f"Specified model not found: {chat.model}")
        if chat.model == MUTE_MODEL and chat.logprobs:
            return Fault(400, f"logprobs is not supported by {chat.model}")
        if chat.top_logprobs is not None and not chat.logprobs:
            return Fault(400, "top_logprobs needs logprobs")
        if names := chat.unsupported:
            return Fault(400, f"this local server does not implement {', '.join(names)}")
        if control.balance <= 0:
            return Fault(402, "Insufficient USD or Diem balance to complete request.")
        if control.faults:
            await _wait(control.delay, request)
            return control.faults.popleft()
        return await self._completed(chat, request)

    async def _completed(self, chat: ChatRequest, request: Request) -> dict[str, Any] | Fault:
        messages = [{"role": message.role, "content": message.text} for message in chat.messages]
        if chat.venice_parameters.include_venice_system_prompt:
            messages.insert(0, _VENICE_PROMPT)
        prompt_ids = self._model.render(messages)
        most = chat.max_completion_tokens or chat.max_tokens or self._model.context_tokens - len(prompt_ids)
        if len(prompt_ids) + most > self._model.context_tokens:
            text = "Your request exceeds the model's maximum context. Please reduce your prompt or completion length."
            kind = {"type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}
            return Fault(400, {"message": text, **kind})
        started = time.monotonic()
        choices, made = [], 0
        for index in range(chat.n):
            answer = await asyncio.to_thread(self._answers.choice, chat, prompt_ids, index, most)
            choices.append(answer.choice)
            made += answer.num_tokens
            if await request.is_disconnected():
                raise _Left
        await _wait(self.control.delay - (time.monotonic() - started), request)
        self.control.balance -= 1
        result = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": chat.model,
            "choices": choices,
            "usage": {
                "prompt_tokens": len(prompt_ids),
                "completion_tokens": made,
                "total_tokens": len(prompt_ids) + made,
                "prompt_tokens_details": None,
            },
            "prompt_logprobs": None,
            "venice_parameters": chat.venice_parameters.echo(),
        }
        if self.control.edit is not None:
            self.control.edit(result)
        return result


async def _wait(seconds: float, request: Request) -> None:
    """Sleeps, unless the caller goes away."""
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        if await request.is_disconnected():
            raise _Left
        await asyncio.sleep(min(0.02, left))
