"""What LiteLLM's proxy does with vLLM's prompt_logprobs, and what its cache does with them: tried, not assumed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import httpx
import orjson
from tokenizers import Tokenizer

from benchmarks.gateway.workload import Ids, completions_request

# Two ways to one vLLM: a model's name in LiteLLM's settings, and what stands there.
WAYS = {
    "teacher-text": "text-completion-openai/teacher",
    "teacher-vllm": "hosted_vllm/teacher",
}
_ERROR_LENGTH = 160


@dataclass(frozen=True)
class ProxyFinding:
    """What one way does with a request for prompt_logprobs that is sent twice.

    Attributes:
        prompt: "token ids" or "text".
        status: HTTP status of the first answer.
        error: what it said, if it was not 200.
        keeps_rows: the first answer has vLLM's prompt_logprobs.
        cached: the second answer came without any request to vLLM.
        cached_keeps_rows: the second one's prompt_logprobs equal the first one's.
        keeps_k_apart: the same prompt with a smaller k is not answered with the larger one's rows.
        cache_key: the second answer's x-litellm-cache-key header.
    """

    way: str
    prompt: str
    status: int
    error: str = ""
    keeps_rows: bool = False
    cached: bool = False
    cached_keeps_rows: bool = False
    keeps_k_apart: bool | None = None
    cache_key: str = ""

    @property
    def scores_from_cache(self) -> bool:
        return self.keeps_rows and self.cached and self.cached_keeps_rows

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"model": WAYS[self.way], "scores_from_cache": self.scores_from_cache}


def vllm_requests(url: str) -> float:
    """Requests that a vLLM has finished since it started, for whatever reason."""
    lines = httpx.get(f"{url}/metrics", timeout=60, trust_env=False).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:request_success_total"))


def try_ways(url: str, vllm_url: str, ids: Ids, tokenizer: Tokenizer, top_k: int) -> list[ProxyFinding]:
    """Scores one sequence through every way, as token ids and as text."""
    text: str = tokenizer.decode(ids)
    prompts: dict[str, list[Ids] | str] = {"token ids": [ids], "text": text}
    with httpx.Client(base_url=url, timeout=300, trust_env=False) as http:
        return [
            _try(http, vllm_url, ProxyFinding(way, name, 0), completions_request(way, [], top_k) | {"prompt": prompt})
            for way in WAYS
            for name, prompt in prompts.items()
        ]


def best_way(findings: Sequence[ProxyFinding]) -> ProxyFinding | None:
    """The first that scores token ids from its cache; text is not an exact sequence of tokens."""
    return next((f for f in findings if f.prompt == "token ids" and f.scores_from_cache), None)


def _try(http: httpx.Client, vllm_url: str, finding: ProxyFinding, request: dict[str, Any]) -> ProxyFinding:
    first = http.post("/v1/completions", json=request)
    if first.status_code != 200:
        return replace(finding, status=first.status_code, error=first.text[:_ERROR_LENGTH])
    before = vllm_requests(vllm_url)
    second = http.post("/v1/completions", json=request)
    upstream = vllm_requests(vllm_url) - before
    smaller_k = request["prompt_logprobs"] // 2
    smaller = http.post("/v1/completions", json=request | {"prompt_logprobs": smaller_k})
    rows, again, narrow = map(_prompt_logprobs, (first, second, smaller))
    return replace(
        finding,
        status=first.status_code,
        keeps_rows=bool(rows),
        cached=upstream == 0,
        cached_keeps_rows=bool(rows) and again == rows,
        keeps_k_apart=len(narrow[-1]) <= smaller_k + 1 if narrow and narrow[-1] else None,
        cache_key=second.headers.get("x-litellm-cache-key", ""),
    )


def _prompt_logprobs(answer: httpx.Response) -> list[dict[str, Any] | None] | None:
    if answer.status_code != 200:
        return None
    rows = orjson.loads(answer.content)["choices"][0].get("prompt_logprobs")
    assert rows is None or isinstance(rows, list)
    return rows
