import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latentforge.inference.engine import AsyncEngine
from latentforge.model.engine.errors import (
    DeadlineError,
    EngineFullError,
    GenerationCancelledError,
    GenerationFailedError,
)
from latentforge.model.engine.limits import EngineLimits
from latentforge.model.engine.requests import GenerationRequest, ScoringRequest
from latentforge.model.sampling import SamplingParams
from latentforge.snapshots.snapshot import load_snapshot
from tests.serial_decoding import SerialDecoding, written_alone

Publish = Callable[..., Path]
Running = Callable[..., AsyncEngine]


@pytest.fixture
def decoding(publish: Publish) -> SerialDecoding:
    """Of two slots."""
    return SerialDecoding(load_snapshot(publish(1, max_chunks=1024), torch.device("cpu")).model, 2)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    engines = []

    def start(**limits: Any) -> AsyncEngine:
        engines.append(engine := AsyncEngine(EngineLimits(**limits)))
        engine.start()
        return engine

    yield start
    for engine in engines:
        await asyncio.to_thread(engine.close)


def ask(decoding: SerialDecoding, max_tokens: int = 10, seed: int = 1, **more: Any) -> GenerationRequest:
    return GenerationRequest(decoding, [5, 6, 7], max_tokens, SamplingParams(seed=seed), **more)


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.001)


async def test_a_stream_gives_an_item_a_step_and_generate_all_of_them(
    running: Running, decoding: SerialDecoding
) -> None:
    engine = running()
    expected = written_alone(ask(decoding))
    async with engine.stream(ask(decoding)) as stream:
        written = [each async for each in stream]
    assert [len(each.token_ids) for each in written] == [4, 4, 2]
    assert ([i for each in written for i in each.token_ids], written[-1].finish_reason) == expected
    assert stream.timings.steps == 3
    whole = await engine.generate(ask(decoding))
    assert (whole.token_ids, whole.finish_reason) == expected
    assert whole.timings.running_seconds > 0


async def test_many_streams_at_once_are_each_what_they_are_alone(running: Running, decoding: SerialDecoding) -> None:
    engine = running()
    requests = [ask(decoding, 6 + seed, seed) for seed in range(8)]
    results = await asyncio.gather(*map(engine.generate, requests))
    assert [(each.token_ids, each.finish_reason) for each in results] == [written_alone(each) for each in requests]


async def test_a_text_is_scored(running: Running, decoding: SerialDecoding) -> None:
    engine = running()
    scored = await engine.score(ScoringRequest(decoding, [5, 6, 7, 8, 9], likeliest=3))
    assert (len(scored.logprobs), [len(each) for each in scored.likeliest]) == (5, [3] * 5)
    with pytest.raises(GenerationFailedError, match="IndexError"):
        await engine.score(ScoringRequest(decoding, [5, 300]))


@pytest.mark.parametrize("how", ["task", "scope", "dropped", "closed"])
async def test_who_leaves_frees_his_slot(running: Running, decoding: SerialDecoding, how: str) -> None:
    engine = running()
    if how == "task":
        task = asyncio.create_task(engine.generate(ask(decoding, 4000)))
        await until(lambda: decoding.num_free == 1)
        task.cancel()
    else:
        stream = engine.stream(ask(decoding, 4000))
        await anext(stream)
        assert decoding.num_free == 1
        if how == "scope":
            async with stream:
                pass
        elif how == "dropped":
            del stream
            gc.collect()
        else:
            stream.cancel()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
    await until(lambda: decoding.num_free == 2)
    assert engine.running == 0


async def test_refusals_name_the_setting(running: Running, decoding: SerialDecoding) -> None:
    engine = running(queue_limit=0, request_seconds=0.01)
    late = [asyncio.create_task(engine.generate(ask(decoding, 4000))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(EngineFullError, match="as many as INFERENCE_QUEUE_LIMIT allows"):
        engine.stream(ask(decoding))
    for task in late:
        with pytest.raises(DeadlineError, match=r"in 0\.01 s.*raise INFERENCE_REQUEST_TIMEOUT"):
            await task
    with pytest.raises(ValueError, match="id 300 is not in the vocabulary"):
        await engine.generate(GenerationRequest(decoding, [300], 4))


async def test_texts_are_tokenised_a_few_at_once_and_those_that_wait_count_as_queued(
    running: Running, decoding: SerialDecoding
) -> None:
    engine = running(queue_limit=3)
    gate, begun = threading.Event(), []

    def work() -> int:
        begun.append(1)
        assert gate.wait(60)
        return len(begun)

    tasks = [asyncio.create_task(engine.prepare(decoding, work)) for _ in range(5)]
    await until(lambda: len(begun) == 2)
    # Two slots and three places in the queue.
    assert engine.queued == 5
    with pytest.raises(EngineFullError):
        await engine.prepare(decoding, lambda: pytest.fail("tokenised"))
    assert len(begun) == 2
    tasks[4].cancel()
    await until(lambda: engine.queued == 4)
    gate.set()
    await asyncio.gather(*tasks[:4])
    assert len(begun) == 4
    assert engine.queued == 0


async def test_tokenising_is_inside_the_requests_time(running: Running, decoding: SerialDecoding) -> None:
    engine = running(request_seconds=0.01)
    gate = threading.Event()
    with pytest.raises(DeadlineError, match="INFERENCE_REQUEST_TIMEOUT"):
        await engine.prepare(decoding, lambda: gate.wait(60))
    gate.set()
    assert engine.preparing == 0


async def test_a_short_text_is_tokenised_at_once_and_a_full_engine_refuses_it_too(
    running: Running, decoding: SerialDecoding
) -> None:
    engine = running(queue_limit=0)
    here = threading.get_ident()
    assert await engine.prepare(decoding, threading.get_ident, num_characters=1024) == here
    assert await engine.prepare(decoding, threading.get_ident, num_characters=1025) != here
    tasks = [asyncio.create_task(engine.generate(ask(decoding, 4000))) for _ in range(2)]
    await until(lambda: engine.running == 2)
    with pytest.raises(EngineFullError):
        await engine.prepare(decoding, lambda: pytest.fail("tokenised"), num_characters=1)
    for task in tasks:
        task.cancel()


async def test_what_cannot_be_prepared_says_why(running: Running, decoding: SerialDecoding) -> None:
    engine = running()
    with pytest.raises(ZeroDivisionError):
        await engine.prepare(decoding, lambda: 1 // 0)
    assert engine.preparing == 0


async def test_closing_the_engine_tells_what_runs_and_what_waits(running: Running, decoding: SerialDecoding) -> None:
    engine = running()
    tasks = [asyncio.create_task(engine.generate(ask(decoding, 4000))) for _ in range(3)]
    await until(lambda: (engine.running, engine.queued) == (2, 1))
    await asyncio.to_thread(engine.close)
    assert [type(each) for each in await asyncio.gather(*tasks, return_exceptions=True)] == [
        GenerationCancelledError
    ] * 3
    with pytest.raises(GenerationCancelledError):
        await engine.generate(ask(decoding))
    assert (engine.running, engine.queued, decoding.num_free) == (0, 0, 2)


async def test_closing_the_engine_tells_those_whose_texts_wait_to_be_tokenised(
    running: Running, decoding: SerialDecoding
) -> None:
    engine = running()
    gate, begun = threading.Event(), []

    def work() -> None:
        begun.append(1)
        assert gate.wait(60)

    tasks = [asyncio.create_task(engine.prepare(decoding, work)) for _ in range(3)]
    await until(lambda: len(begun) == 2)
    await asyncio.to_thread(engine.close)
    with pytest.raises(GenerationCancelledError):
        await tasks[2]
    assert engine.preparing == 2
    # Who leaves by himself is told nothing else.
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    gate.set()
    await tasks[0]


async def test_a_decoding_is_freed_with_its_last_request(running: Running, publish: Publish) -> None:
    decoding = SerialDecoding(load_snapshot(publish(1), torch.device("cpu")).model, 2)
    engine, freed = running(), weakref.ref(decoding)
    gc.collect()
    gc.disable()
    try:
        await engine.generate(ask(decoding))
        await engine.score(ScoringRequest(decoding, [5, 6, 7]))
        del decoding
        await until(lambda: freed() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize(("streams", "woken_for"), [(True, [2, 2, 2]), (False, [2])])
async def test_the_event_loop_is_woken_once_an_iteration_and_for_whole_texts_once(
    decoding: SerialDecoding, monkeypatch: pytest.MonkeyPatch, streams: bool, woken_for: list[int]
) -> None:
    woken: list[int] = []

    def count(told: list[Any]) -> None:
        woken.append(len(told))
        for each in told:
            each.arrived.set()

    monkeypatch.setattr("latentforge.inference.engine._signal", count)
    engine = AsyncEngine(EngineLimits())

    async def ids_of(request: GenerationRequest) -> list[int]:
        if streams:
            return [i async for each in engine.stream(request) for i in each.token_ids]
        return (await engine.generate(request)).token_ids

    tasks = [asyncio.create_task(ids_of(ask(decoding, 12, seed))) for seed in range(2)]
    await asyncio.sleep(0)
    engine.start()
    assert [len(ids) for ids in await asyncio.gather(*tasks)] == [12, 12]
    await asyncio.to_thread(engine.close)
    assert woken == woken_for
