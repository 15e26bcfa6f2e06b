"""Stand-ins that compute a real model's answers in the form that each kind of server publishes, and refuse the rest.

Fields and answers of SGLang are those of its io_struct.py, sampling_params.py and http_server.py; llama.cpp's were
compared with a running llama.cpp (tests/llamacpp).
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import Qwen3ForCausalLM

from latentforge.gateway.backends import build_backend
from latentforge.gateway.backends.base import Backend, ContinuationRequest, Piece
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings
from latentforge.text.tokenizer import TextTokenizer
from tools.venice_server.running import serving

CONTEXT = 128
EOS = 0
KEY = "sk-very-secret"
# Of the random teacher's ids, those from 260 on are no token's; a text API could not name them.
PROMPT = np.array([70, 71, 72, 90, 100], np.uint32)


def _fields(text: str) -> set[str]:
    return set(text.split())


_SGLANG_FIELDS = _fields(
    "text input_ids input_embeds image_data audio_data sampling_params rid return_logprob logprob_start_len "
    "top_logprobs_num token_ids_logprob return_text_in_logprobs stream log_metrics lora_path session_params "
    "return_hidden_states background bootstrap_host bootstrap_port bootstrap_room priority extra_key"
)
_SGLANG_SAMPLING = _fields(
    "max_new_tokens stop stop_token_ids stop_regex temperature top_p top_k min_p frequency_penalty presence_penalty "
    "repetition_penalty min_new_tokens n json_schema regex ebnf structural_tag ignore_eos skip_special_tokens "
    "spaces_between_special_tokens no_stop_trim custom_params stream_interval logit_bias sampling_seed"
)
_OPENAI_FIELDS = _fields(
    "model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream "
    "stream_options suffix temperature top_p user"
)
_OPENAI_MOST_LOGPROBS = 5

Asked = dict[str, Any]


class Refused(Exception):  # noqa: N818
    """Answered with this status and error."""

    def __init__(self, status: int, error: Any) -> None:
        self.status, self.error = status, error


@dataclass
class StandIn:
    """One server.

    Attributes:
        kind: sglang, llamacpp, openai (texts for tokens, nothing beyond its own fields), ids (vLLM's names for tokens,
            and ``echo``), vllm (``prompt_logprobs`` too) or mute (no log-probabilities).
        edit: changes an answer before it is sent.
        tempered: log-probabilities of what is written are after temperature.
        closes: it ends the connection after each answer.
    """

    folder: Path
    kind: str
    edit: Callable[[str, Any], Any] = lambda path, answer: answer
    tempered: bool = False
    closes: bool = False
    asked: list[tuple[str, Asked]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.load(self.folder)
        self.tokenizer = TextTokenizer(self.folder)

    def load(self, folder: Path, noise: float = 0.0) -> None:
        """Serves these weights from now on, with Gaussian noise on them."""
        self._model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in self._model.parameters():
                weight.add_(noise * torch.randn_like(weight))

    def logprobs(self, ids: list[int]) -> NDArray[np.float64]:
        """[L, v]: after each token."""
        with torch.no_grad():
            logits = self._model(torch.tensor([ids])).logits[0]
        result: NDArray[np.float64] = logits.double().log_softmax(-1).numpy()
        return result

    def answer(self, method: str, path: str, asked: Asked) -> Any:
        if (method, path) == ("GET", "/v1/models"):
            return {"object": "list", "data": [self._listed()]}
        if (method, path) == ("POST", "/v1/completions"):
            return self._completed(asked)
        if (method, path) == ("POST", "/tokenize") and self.kind in ("sglang", "llamacpp", "vllm"):
            text = asked["content"] if self.kind == "llamacpp" else asked["prompt"]
            return {"tokens": self.tokenizer.encode(text, parse_special_tokens=True)}
        if self.kind == "sglang" and (method, path) == ("POST", "/generate"):
            return self._generated(asked)
        if self.kind == "sglang" and (method, path) == ("GET", "/get_model_info"):
            return {"model_path": "tiny", "is_generation": True, "weight_version": "default"}
        if self.kind == "vllm" and (method, path) == ("GET", "/version"):
            return {"version": "0.32.0"}
        raise Refused(404, {"code": 404, "message": "File Not Found", "type": "not_found_error"})

    def _listed(self) -> dict[str, Any]:
        model: dict[str, Any] = {"id": "tiny", "object": "model", "created": 1, "owned_by": self.kind}
        if self.kind == "llamacpp":
            return model | {"meta": {"n_vocab": 300, "n_ctx": CONTEXT, "n_ctx_train": 512}}
        if self.kind in ("sglang", "vllm"):
            return model | {"root": "tiny", "max_model_len": CONTEXT}
        return model

    def draw(self, prompt: list[int], most: int, seed: int, temperature: float, ends: set[int]) -> list[int]:
        generator = np.random.default_rng(seed)
        ids: list[int] = []
        while len(ids) < most and not (ids and ids[-1] in ends):
            row = self.logprobs([*prompt, *ids])[-1]
            if temperature == 0:
                ids.append(int(row.argmax()))
            else:
                weights = np.exp(row / temperature)
                ids.append(int(generator.choice(len(row), p=weights / weights.sum())))
        return ids

    # SGLang

    def _generated(self, asked: Asked) -> Any:
        if unknown := sorted(set(asked) - _SGLANG_FIELDS):
            raise Refused(400, {"message": f"unexpected fields {unknown}"})
        if ("text" in asked) == ("input_ids" in asked):
            raise Refused(400, {"message": "Either text, input_ids or input_embeds should be provided."})
        ids = asked["input_ids"]
        if isinstance(ids[0], list):
            return [self._generated_one(each, asked) for each in ids]
        return self._generated_one(ids, asked)

    def _generated_one(self, ids: list[int], asked: Asked) -> dict[str, Any]:
        sampling = asked["sampling_params"]
        if unknown := sorted(set(sampling) - _SGLANG_SAMPLING):
            raise Refused(400, {"message": f"unexpected keyword arguments {unknown}"})
        if sampling["max_new_tokens"] < 0 or sampling["top_k"] < -1 or sampling["top_k"] == 0:
            raise Refused(400, {"message": "top_k must be -1 (disable), or at least 1"})
        if len(ids) >= CONTEXT:
            message = f"The input ({len(ids)} tokens) is longer than the model's context length ({CONTEXT} tokens)."
            raise Refused(400, {"message": message})
        ends = {EOS, *sampling.get("stop_token_ids", [])}
        seed, temperature = sampling.get("sampling_seed", 0), sampling["temperature"]
        made = self.draw(ids, sampling["max_new_tokens"], seed, temperature, ends)
        ended = bool(made) and made[-1] in ends
        reason = {"type": "stop", "matched": made[-1]} if ended else {"type": "length", "length": len(made)}
        meta: dict[str, Any] = {"id": "1", "finish_reason": reason, "prompt_tokens": len(ids), "cached_tokens": 0}
        if asked.get("return_logprob"):
            assert asked["logprob_start_len"] == 0
            rows, k = self.logprobs(ids)[:-1], asked["top_logprobs_num"]
            own = [[float(row[i]), i, None] for row, i in zip(rows, ids[1:], strict=True)]
            meta["input_token_logprobs"] = [[None, ids[0], None], *own]
            meta["input_top_logprobs"] = [None, *([[float(row[i]), i, None] for i in _top(row, k)] for row in rows)]
            meta["output_token_logprobs"], meta["output_top_logprobs"] = [], []
        return {"text": self.tokenizer.decode(made), "output_ids": made, "meta_info": meta}

    # /v1/completions

    def _completed(self, asked: Asked) -> dict[str, Any]:
        unknown = sorted(set(asked) - _OPENAI_FIELDS)
        if self.kind == "openai" and unknown:
            raise Refused(400, {"message": f"Unrecognized request arguments supplied: {', '.join(unknown)}"})
        if self.kind == "openai" and (asked.get("logprobs") or 0) > _OPENAI_MOST_LOGPROBS:
            raise Refused(400, {"message": "This endpoint does not support logprobs > 5", "param": "logprobs"})
        prompt = asked["prompt"]
        if isinstance(prompt, str):
            prompts = [self.tokenizer.encode(prompt, parse_special_tokens=True)]
        else:
            prompts = prompt if isinstance(prompt[0], list) else [prompt]
        if any(i >= 300 for ids in prompts for i in ids):
            raise Refused(400, {"message": "Prompt contains invalid tokens"})
        choices = [self._choice(index, ids, asked) for index, ids in enumerate(prompts)]
        usage = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": 0}
        return {"choices": choices, "model": asked["model"], "usage": usage, "system_fingerprint": "b1-local"}

    def _choice(self, index: int, ids: list[int], asked: Asked) -> dict[str, Any]:
        temperature = asked.get("temperature", 1.0)
        ends = {EOS, *asked.get("stop_token_ids", [])}
        made = self.draw(ids, asked["max_tokens"], asked.get("seed") or 0, temperature, ends)
        ended = made[-1] in ends
        rows = self.logprobs([*ids, *made])
        shown = list(zip(made, rows[len(ids) - 1 : -1], strict=True))
        if self.tempered and temperature:
            shown = [(i, np.log(_normal(np.exp(row / temperature)))) for i, row in shown]
        k = asked.get("logprobs")
        before: list[tuple[int, NDArray[np.float64] | None]] = []
        if asked.get("echo") and self.kind in ("ids", "vllm"):
            before = [(ids[0], None), *zip(ids[1:], rows[: len(ids) - 1], strict=True)]
        choice: dict[str, Any] = {
            "index": index,
            "finish_reason": "stop" if ended else "length",
            "text": self.tokenizer.decode([i for i in made if i not in self.tokenizer.special_ids], goes_on=True),
            "logprobs": None if not k or self.kind == "mute" else self._said([*before, *shown], k),
        }
        if self.kind == "vllm":
            choice |= {"token_ids": made, "prompt_token_ids": ids, "stop_reason": None}
            k = asked.get("prompt_logprobs")
            choice["prompt_logprobs"] = None if k is None else [None, *_ranked(rows, ids, k)]
        return choice

    def _said(self, shown: list[tuple[int, NDArray[np.float64] | None]], k: int) -> dict[str, Any]:
        if self.kind == "llamacpp":
            return {"content": [self._token(i, row) | self._tops(row, k) for i, row in shown]}
        name = (lambda i: f"token_id:{i}") if self.kind in ("ids", "vllm") else self._text
        return {
            "tokens": [name(i) for i, _ in shown],
            "token_logprobs": [None if row is None else float(row[i]) for i, row in shown],
            "top_logprobs": [
                # OpenAI's holds the own token too.
                None if row is None else {name(j): float(row[j]) for j in dict.fromkeys([*_top(row, k), i])}
                for i, row in shown
            ],
        }

    def _text(self, token_id: int) -> str:
        return self.tokenizer.decode([token_id])

    def _token(self, token_id: int, row: NDArray[np.float64] | None) -> dict[str, Any]:
        assert row is not None
        data = self.tokenizer.token_bytes.get(token_id) or b""
        text = data.decode("utf-8", "ignore")
        return {"id": token_id, "token": text, "bytes": list(data), "logprob": float(row[token_id])}

    def _tops(self, row: NDArray[np.float64] | None, k: int) -> dict[str, Any]:
        assert row is not None
        return {"top_logprobs": [self._token(i, row) for i in _top(row, k)]}


def _top(row: NDArray[np.float64], k: int) -> list[int]:
    return [int(i) for i in np.argsort(-row, kind="stable")[:k]]


def _normal(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = weights / weights.sum()
    return result


def _ranked(rows: NDArray[np.float64], ids: list[int], k: int) -> Iterator[dict[str, Any]]:
    for row, own in zip(rows, ids[1:], strict=False):
        order = _top(row, len(row))
        yield {str(i): {"logprob": float(row[i]), "rank": order.index(i) + 1} for i in dict.fromkeys([own, *order[:k]])}


Serve = Callable[..., Any]
MakeBackend = Callable[..., Backend]


def continuation_request(**changes: Any) -> ContinuationRequest:
    defaults: dict[str, Any] = {
        "prompt_ids": PROMPT,
        "max_tokens": 10,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 3,
        "n": 1,
        "top_k": 5,
        "stop": (),
    }
    return ContinuationRequest(**(defaults | changes))


async def generated(backend: Backend, **changes: Any) -> list[Piece]:
    return sorted(
        [piece async for piece in backend.generate(continuation_request(**changes))], key=lambda piece: piece.index
    )


@pytest.fixture
def serve(byte_teacher: Path, random_teacher: Path) -> Iterator[Serve]:
    """Starts stand-ins; gives each with its URL."""
    with ExitStack() as stack:

        def start(kind: str, *, folder: Path = random_teacher, **options: Any) -> tuple[StandIn, str]:
            stand_in = StandIn(folder, kind, **options)
            return stand_in, stack.enter_context(_running(stand_in))

        yield start


@contextmanager
def _running(stand_in: StandIn) -> Iterator[str]:
    async def respond(request: Request) -> Response:
        path = request.url.path
        asked = await request.json() if request.method == "POST" else {}
        stand_in.asked.append((path, asked))
        if request.headers.get("authorization") not in (None, f"Bearer {KEY}"):
            return JSONResponse({"error": {"message": "Unauthorized"}}, 401)
        headers = {"connection": "close"} if stand_in.closes else {}
        try:
            return JSONResponse(stand_in.edit(path, stand_in.answer(request.method, path, asked)), headers=headers)
        except Refused as refused:
            return JSONResponse({"error": refused.error}, refused.status, headers)

    with serving(Starlette(routes=[Route("/{path:path}", respond, methods=["GET", "POST"])])) as url:
        yield url


@pytest.fixture
async def make_backend(
    make_settings: Callable[..., GatewaySettings], random_teacher: Path
) -> AsyncIterator[MakeBackend]:
    """Backends for a URL, not loaded."""
    made: list[Backend] = []

    def make(url: str, **changes: Any) -> Backend:
        defaults: dict[str, Any] = {
            "teacher_backend": "openai-compatible",
            "openai_compatible_url": url,
            "tokenizer_path": random_teacher,
            "vllm_start_seconds": 0,
            "max_top_k": 20,
        }
        made.append(build_backend(make_settings(**(defaults | changes)), Metrics()))
        return made[-1]

    yield make
    for backend in made:
        await backend.close()
