"""Generation in the caller's thread: an engine of its own for a list of requests."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from latentforge.model.decoding.batch import TokenLogprob
from latentforge.model.engine.engine import Engine
from latentforge.model.engine.limits import EngineLimits
from latentforge.model.engine.requests import GenerationRequest, Written
from latentforge.model.engine.ticket import EngineEvent, Ticket
from latentforge.model.engine.timings import Timings


@dataclass(frozen=True)
class GenerationResult:
    """All that was written for one request.

    Attributes:
        token_ids: without the id that ended it.
        finish_reason: "stop" or "length".
        timings: how long it took.
        logprobs, likeliest: of each id, where they were asked for.
    """

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    timings: Timings
    logprobs: list[float] | None = None
    likeliest: list[list[TokenLogprob]] | None = None


def collected(written: Sequence[Written], timings: Timings) -> GenerationResult:
    """The whole of what was written step by step; the last one has a finish_reason."""
    reason = written[-1].finish_reason
    assert reason is not None
    token_ids = [token_id for each in written for token_id in each.token_ids]
    if written[0].logprobs is None:
        return GenerationResult(token_ids, reason, timings)
    logprobs = [logprob for each in written for logprob in each.logprobs or ()]
    likeliest = [ids for each in written for ids in each.likeliest or ()]
    return GenerationResult(token_ids, reason, timings, logprobs, likeliest)


def run(
    requests: Sequence[GenerationRequest],
    on_written: Callable[[int, Written], None] = lambda index, written: None,
    *,
    prefill_tokens: int = EngineLimits.prefill_tokens,
) -> list[GenerationResult]:
    """Runs requests to their ends, as many at once as there are slots; gives results in their order.

    Args:
        requests: any number, of any decodings.
        on_written: told a request's index and what a step wrote for it.
        prefill_tokens: tokens of prompts that are read between two steps.

    Raises:
        ValueError: a request is refused.
        GenerationFailedError: a step of the model failed.
        RuntimeError: a decoding's slots are all taken by others' texts.
    """
    engine = Engine(EngineLimits(queue_limit=len(requests), queue_tokens=2**62, prefill_tokens=prefill_tokens))
    written: list[list[Written]] = [[] for _ in requests]

    def listen(index: int, event: EngineEvent) -> None:
        if isinstance(event, Exception):
            failures.append(event)
        elif isinstance(event, Written):
            written[index].append(event)
            on_written(index, event)

    failures: list[Exception] = []
    tickets = [engine.submit(request, partial(listen, index), float("inf")) for index, request in enumerate(requests)]
    try:
        while not failures and not engine.is_idle:
            _advance(engine)
    finally:
        _end(engine)
    if failures:
        raise failures[0]
    return [collected(each, ticket.timings) for each, ticket in zip(written, tickets, strict=True)]


def stream(request: GenerationRequest) -> Generator[Written, None, None]:
    """Writes one text step by step, each when the iterator is advanced; raises as :func:`run`."""
    events: list[EngineEvent] = []
    engine = Engine()
    ticket: Ticket = engine.submit(request, events.append, float("inf"))
    try:
        while not ticket.is_over:
            _advance(engine)
            for event in events:
                if isinstance(event, Exception):
                    raise event
                assert isinstance(event, Written)
                yield event
            events.clear()
    finally:
        _end(engine)


def _advance(engine: Engine) -> None:
    if not engine.run_once():
        raise RuntimeError("every slot is taken by texts that were opened elsewhere; close them, or make more slots")


def _end(engine: Engine) -> None:
    engine.close()
    engine.run_once()
