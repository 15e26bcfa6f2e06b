"""What a server says of the model that is meant, and whether it tokenises as we do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.backends.upstream import Api, Upstream
from latentforge.gateway.backends.waiting import patiently
from latentforge.gateway.metrics import Metrics

# What stays as it is while a server serves a model. Lists hold times, too, and names that are drawn for each answer.
_LASTING = ("id", "root", "parent", "owned_by", "max_model_len", "context_length")
_LASTING_META = ("vocab_type", "n_vocab", "n_ctx", "n_ctx_train", "n_embd", "n_params", "size")


@dataclass(frozen=True)
class Listed:
    """A model of GET /v1/models.

    Attributes:
        owner: what SGLang, llama.cpp and vLLM write their own names into.
        max_length: tokens of prompt and continuation; None where the server does not say.
        details: what the list says that lasts, for telling two models apart.
    """

    name: str
    owner: str
    max_length: int | None
    details: Mapping[str, Any]

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in sorted(self.details.items()))


async def find_model(api: Api, limit: float, metrics: Metrics, chosen: str | None) -> Listed:
    """Waits ``limit`` seconds for a server that is starting.

    Raises:
        BackendError: it does not answer, or does not list ``chosen``.
    """

    async def look(upstream: Upstream) -> Listed:
        return await listed_now(upstream, api.url_setting, chosen)

    return await patiently(api, limit, metrics, look, "start the server")


async def listed_now(upstream: Upstream, url_setting: str, chosen: str | None) -> Listed:
    """As :func:`find_model`, of a server that runs."""
    return _choose(await upstream.get("/v1/models"), url_setting, chosen)


def _choose(answer: Any, url_setting: str, chosen: str | None) -> Listed:
    try:
        models = {str(model["id"]): model for model in answer["data"]}
        wanted = chosen or next(iter(models), None)
        if wanted is None or wanted not in models:
            listed = ", ".join(models) or "none"
            text = f"OPENAI_COMPATIBLE_MODEL={wanted} is not among the models that {url_setting} lists: {listed}"
            raise BackendError(text, FailureKind.MISCONFIGURED)
        model = models[wanted]
        # llama.cpp says it in "meta", the others beside the name.
        meta = model.get("meta") or {}
        said = [model.get("max_model_len"), meta.get("n_ctx"), model.get("context_length")]
        lengths = [int(length) for length in said if length is not None]
        details = {name: model[name] for name in _LASTING if name in model}
        details |= {f"meta.{name}": meta[name] for name in _LASTING_META if name in meta}
    except (KeyError, TypeError, ValueError, AttributeError):
        text = f"{url_setting} answers GET /v1/models with something that is no list of models"
        raise BackendError(text, FailureKind.MISCONFIGURED) from None
    return Listed(wanted, str(model.get("owned_by") or "server"), lengths[0] if lengths else None, details)


async def tokenised(upstream: Upstream, model: str, text: str) -> list[int] | None:
    """What the server makes of a text in which special tokens are meant; None where it does not say.

    vLLM and SGLang read ``prompt``, llama.cpp reads ``content``.

    Raises:
        BackendError: it is gone, or refuses the key.
    """
    payload = {
        "model": model,
        "prompt": text,
        "content": text,
        "add_special_tokens": False,
        "add_special": False,
        "parse_special": True,
    }
    try:
        answer: Any = await upstream.post("/tokenize", lambda: payload)
    except BackendError as error:
        if unanswered(error):
            return None
        raise
    tokens = answer.get("tokens") if isinstance(answer, Mapping) else None
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        return None
    return tokens


def unanswered(error: BackendError) -> bool:
    """Whether a question that not every server knows was not understood; else it is the server that is in trouble."""
    return error.kind in (FailureKind.REFUSED, FailureKind.NOT_FOUND, FailureKind.BROKEN)


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Where two lists of ids differ first; None if they do not."""
    same = [a == b for a, b in zip(ours, theirs, strict=False)]
    if False in same:
        return same.index(False)
    return None if len(ours) == len(theirs) else len(same)
