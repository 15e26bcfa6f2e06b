"""Text in, text out: the edge around the engine, where prompts become ids and ids become text."""

import secrets
from dataclasses import dataclass
from functools import partial

from latentforge.inference.engine import AsyncEngine
from latentforge.inference.operation.request_record import note_request
from latentforge.inference.rest.prompts import encode_text, sampling_of, tokens_to_write
from latentforge.inference.rest.schemas.generate import (
    DEFAULT_MAX_TOKENS,
    GenerateRequest,
    GenerateResponse,
    TokenUsage,
)
from latentforge.model.engine.offline import GenerationResult
from latentforge.model.engine.requests import GenerationRequest
from latentforge.snapshots.snapshot import Snapshot
from latentforge.text.stopping_text import StoppingText


@dataclass(frozen=True)
class PlannedGeneration:
    """What one snapshot is to write for a request.

    Attributes:
        generation: for the engine.
        text: looks for stop strings in what is written; None where there are none.
    """

    generation: GenerationRequest
    text: StoppingText | None


async def complete(engine: AsyncEngine, snapshot: Snapshot, request: GenerateRequest) -> GenerateResponse:
    """Answers a request with one snapshot, from its tokenizer to its last token.

    Raises:
        PromptError: prompt or max_tokens do not fit into the model's context.
        EngineFullError, DeadlineError, GenerationCancelledError, GenerationFailedError: from the engine.
    """
    note_request(checkpoint=snapshot.id)
    deadline = engine.new_deadline()
    work = partial(prepare, snapshot, request)
    planned = await engine.prepare(snapshot.decoding, work, deadline, num_characters=len(request.prompt))
    note_request(prompt_tokens=len(planned.generation.prompt_ids))
    answered = answer(snapshot, planned, await engine.generate(planned.generation, deadline))
    note_request(completion_tokens=len(answered.token_ids))
    return answered


def prepare(snapshot: Snapshot, request: GenerateRequest) -> PlannedGeneration:
    """What a request is to a snapshot; a request without a seed gets one.

    Raises:
        PromptError: prompt or max_tokens do not fit into the model's context, or a biased id into its vocabulary.
    """
    prompt = encode_text(snapshot, request.prompt, parse_special_tokens=request.parse_special_tokens)
    most = tokens_to_write(snapshot, prompt, request.max_tokens, DEFAULT_MAX_TOKENS)
    params = sampling_of(snapshot, request, secrets.randbelow(2**32) if request.seed is None else request.seed)
    words, end_ids = stops(snapshot, request)
    text = StoppingText(snapshot.tokenizer, words) if words else None
    end_ids |= {snapshot.decoding.eos_id}
    stop = None if text is None else text.read
    generation = GenerationRequest(snapshot.decoding, prompt.ids, most, params, end_ids, stop=stop)
    return PlannedGeneration(generation, text)


def stops(snapshot: Snapshot, request: GenerateRequest) -> tuple[list[str], frozenset[int]]:
    """Strings and ids that end a continuation.

    What ends an assistant's answer ends a continuation whose prompt had its special tokens parsed, which is how chats
    come.
    """
    words, ids = snapshot.tokenizer.stops(request.stop)
    return words, ids | snapshot.end_ids if request.parse_special_tokens else ids


def answer(snapshot: Snapshot, planned: PlannedGeneration, result: GenerationResult) -> GenerateResponse:
    """What a caller gets for all that was written."""
    seed = planned.generation.params.seed
    assert seed is not None
    text = snapshot.decode(result.token_ids) if planned.text is None else planned.text.take() + planned.text.flush()
    num_tokens, steps, seconds = len(result.token_ids), result.timings.steps, result.timings.running_seconds
    return GenerateResponse(
        text=text,
        token_ids=result.token_ids,
        checkpoint=snapshot.id,
        finish_reason=result.finish_reason,
        usage=TokenUsage(
            prompt_tokens=len(planned.generation.prompt_ids),
            completion_tokens=num_tokens,
            latent_steps=steps,
        ),
        seed=seed,
        milliseconds=1000 * seconds,
        latent_steps_per_second=steps / seconds,
        tokens_per_second=num_tokens / seconds,
    )
