"""Text in, text out: the edge around the engine, where prompts become ids and ids become text."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from itertools import takewhile

from latentforge.inference.checkpoints.snapshot import Snapshot
from latentforge.inference.generation_pool import GenerationJob, GenerationPool, PooledResult
from latentforge.inference.operation.request_record import note_request
from latentforge.inference.rest.schemas import GenerateRequest, GenerateResponse, TokenUsage
from latentforge.model.chunks import left_pad_count
from latentforge.model.sampling import SamplingParams


class PromptError(ValueError):
    """A request that does not fit the model; ``param`` names the field."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


async def complete(engine: GenerationPool, snapshot: Snapshot, request: GenerateRequest) -> GenerateResponse:
    """Answers a request with one snapshot, from its tokenizer to its last token.

    Raises:
        PromptError: prompt or max_tokens do not fit into the model's context.
        EngineFullError, DeadlineError, GenerationCancelledError: from the engine.
    """
    # A long prompt takes long enough to hold up every other request.
    note_request(checkpoint=snapshot.id)
    job = await asyncio.to_thread(prepare, snapshot, request)
    note_request(prompt_tokens=len(job.prompt_ids))
    generation = await engine.generate(job)
    answered = answer(snapshot, job, generation, request)
    note_request(completion_tokens=len(answered.token_ids))
    return answered


def prepare(snapshot: Snapshot, request: GenerateRequest) -> GenerationJob:
    """The job that a request is for a snapshot; a request without a seed gets one.

    Raises:
        PromptError: prompt or max_tokens do not fit into the model's context, or a biased id into its vocabulary.
    """
    longest, num_bytes = snapshot.generator.max_prompt_tokens, len(request.prompt.encode())
    if num_bytes > snapshot.max_prompt_bytes:
        raise PromptError(
            "prompt",
            f"prompt has {num_bytes} bytes, but {snapshot.id} takes at most {longest} tokens, which are at most "
            f"{snapshot.max_prompt_bytes} bytes; shorten it",
        )
    prompt_ids = snapshot.encode(request.prompt, parse_special_tokens=request.parse_special_tokens)
    if len(prompt_ids) > longest:
        raise PromptError(
            "prompt", f"prompt has {len(prompt_ids)} tokens, but {snapshot.id} takes at most {longest}; shorten it"
        )
    padded = len(prompt_ids) + left_pad_count(len(prompt_ids), snapshot.manifest.chunk_size)
    room = snapshot.max_context_tokens - padded
    if request.max_tokens > room:
        raise PromptError(
            "max_tokens",
            f"max_tokens is {request.max_tokens}, but after a prompt of {len(prompt_ids)} tokens {snapshot.id} "
            f"has room for {room} of its {snapshot.max_context_tokens}; ask for at most {room}",
        )
    seed = secrets.randbelow(2**32) if request.seed is None else request.seed
    # Fields of a request are checked already.
    params = SamplingParams.model_construct(**{name: getattr(request, name) for name in SamplingParams.model_fields})
    params = params.model_copy(update={"seed": seed})
    vocab_size = snapshot.generator.model.vocab_size
    if params.logit_bias and (most := max(params.logit_bias)) >= vocab_size:
        raise PromptError(
            "logit_bias", f"logit_bias names id {most}, but {snapshot.id} has a vocabulary of {vocab_size} ids"
        )
    stop = stop_rule(snapshot.decode, *stops(snapshot, request))
    return GenerationJob(snapshot.generator, prompt_ids, request.max_tokens, params, stop=stop)


def stops(snapshot: Snapshot, request: GenerateRequest) -> tuple[list[str], frozenset[int]]:
    """Strings and ids that end a continuation.

    What ends an assistant's answer ends a continuation whose prompt had its special tokens parsed, which is how chats
    come.
    """
    words, ids = snapshot.tokenizer.stops(request.stop)
    return words, ids | snapshot.end_ids if request.parse_special_tokens else ids


def stop_rule(
    decode: Callable[[list[int]], str], stop: Sequence[str], end_ids: frozenset[int] = frozenset()
) -> Callable[[list[int]], bool] | None:
    """Whether some ids hold an end id, or their text a stop string; None where there are none to look for."""
    if not stop and not end_ids:
        return None

    def is_over(token_ids: list[int]) -> bool:
        if not end_ids.isdisjoint(token_ids):
            return True
        text = decode(token_ids) if stop else ""
        return any(word in text for word in stop)

    return is_over


def cut_at_stop(
    decode: Callable[[list[int]], str],
    token_ids: list[int],
    stop: Sequence[str],
    end_ids: frozenset[int] = frozenset(),
) -> tuple[str, list[int]]:
    """The text before its first stop string or end id, and the fewest ids whose text holds that string."""
    token_ids = list(takewhile(lambda i: i not in end_ids, token_ids))
    text = decode(token_ids)
    found = [text.find(word) for word in stop if word in text]
    if not found:
        return text, token_ids
    is_over = stop_rule(decode, stop)
    assert is_over is not None
    # The string ended in the last chunk, so its end is near.
    count = len(token_ids)
    while count > 1 and is_over(token_ids[: count - 1]):
        count -= 1
    return text[: min(found)], token_ids[:count]


def answer(
    snapshot: Snapshot, job: GenerationJob, generation: PooledResult, request: GenerateRequest
) -> GenerateResponse:
    """What a caller gets for a finished job."""
    text, token_ids = cut_at_stop(snapshot.decode, generation.token_ids, *stops(snapshot, request))
    assert generation.finish_reason != "cancelled"
    assert job.params.seed is not None
    return GenerateResponse(
        text=text,
        token_ids=token_ids,
        checkpoint=snapshot.id,
        finish_reason=generation.finish_reason,
        usage=TokenUsage(
            prompt_tokens=len(job.prompt_ids),
            completion_tokens=len(token_ids),
            latent_steps=generation.steps,
        ),
        seed=job.params.seed,
        milliseconds=1000 * generation.seconds,
        latent_steps_per_second=generation.steps / generation.seconds,
        tokens_per_second=len(token_ids) / generation.seconds,
    )
