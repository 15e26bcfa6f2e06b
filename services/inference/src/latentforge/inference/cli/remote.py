"""A running server, asked over HTTP: whole answers, and texts as they are written."""

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from latentforge.core.command_line import WRONG_USAGE, fail
from latentforge.core.proxies import is_loopback, proxy_hint, unusable_proxy
from latentforge.inference.cli.access import key_headers
from latentforge.inference.cli.writing import Summary, Writing
from latentforge.inference.rest.schemas.generate import GenerateRequest, GenerateResponse
from latentforge.text.chat_template import Message

_SECONDS = 600
_EVENT, _END = "data: ", "[DONE]"
# What both of OpenAI's requests know of ours.
_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens")


class RemoteServer:
    """One server; whatever is wrong with it or the way to it ends the process with a message.

    Args:
        url: like http://localhost:7860.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._headers = key_headers()

    def generate(self, request: GenerateRequest) -> GenerateResponse:
        """A whole answer."""
        with self._client() as client, self._reached():
            response = client.post(f"{self.url}/generate", json=request.model_dump(exclude_none=True))
        self._check(response)
        return GenerateResponse.model_validate(response.json())

    def write(self, request: GenerateRequest) -> Writing:
        """Continues a prompt; its seed is drawn here where it has none."""
        body = {"prompt": request.prompt, **({"stop": list(request.stop)} if request.stop else {})}
        return self._stream("/v1/completions", body, request)

    def answer(self, messages: Sequence[Message], request: GenerateRequest) -> Writing:
        """Answers a chat; of the request its prompt is not read."""
        return self._stream("/v1/chat/completions", {"messages": [dict(message) for message in messages]}, request)

    def _stream(self, path: str, body: dict[str, Any], request: GenerateRequest) -> Writing:
        seed = secrets.randbelow(2**32) if request.seed is None else request.seed
        sampling = {name: getattr(request, name) for name in _SAMPLING if getattr(request, name) is not None}
        options = {"stream": True, "stream_options": {"include_usage": True}}
        started = time.perf_counter()
        checkpoint = reason = ""
        num_steps = num_tokens = 0
        with self._client() as client, self._reached():
            asked = {**body, **sampling, "seed": seed, **options}
            with client.stream("POST", f"{self.url}{path}", json=asked) as response:
                self._check(response)
                for event in _events(response.iter_lines()):
                    if "error" in event:
                        fail(f"{self.url} failed while it wrote: {event['error'].get('message')}")
                    checkpoint = event["model"]
                    if event.get("usage"):
                        num_tokens = event["usage"]["completion_tokens"]
                    for choice in event["choices"]:
                        num_steps += bool(choice.get("token_ids"))
                        reason = choice.get("finish_reason") or reason
                        piece = choice["delta"]["content"] if "delta" in choice else choice["text"]
                        if piece:
                            yield piece
        return Summary(checkpoint, num_tokens, num_steps, time.perf_counter() - started, seed, reason)

    def _client(self) -> httpx.Client:
        try:
            # The context is made here since a client without the environment's proxies ignores its SSL_CERT_FILE as
            # well.
            return httpx.Client(
                headers=self._headers,
                trust_env=not is_loopback(self.url),
                verify=httpx.create_ssl_context(),
                timeout=_SECONDS,
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            fail(unusable_proxy(error), code=WRONG_USAGE)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            fail(
                f"no inference server answers at {self.url} ({error}); start one with `make serve`, or leave --url out"
                f"{proxy_hint(self.url)}"
            )

    def _check(self, response: httpx.Response) -> None:
        if response.status_code == httpx.codes.OK:
            return
        response.read()
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"{response.text[:200]}{proxy_hint(self.url)}"
        fail(f"{self.url} answered {response.status_code}: {message}")


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of server-sent events; comments are passed over."""
    for line in lines:
        if line.startswith(_EVENT) and (data := line.removeprefix(_EVENT)) != _END:
            event: dict[str, Any] = json.loads(data)
            yield event
