import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentforge.inference.checkpoints.snapshot import Snapshot, load_snapshot
from latentforge.inference.generation_pool import NO_EOS, GenerationJob, GenerationPool, generate_ids
from latentforge.model.engine.errors import GenerationCancelledError
from latentforge.model.sampling import SamplingParams

Publish = Callable[..., Path]
SEEDED = SamplingParams(seed=3)


@pytest.fixture
def snapshot(publish: Publish) -> Snapshot:
    return load_snapshot(publish(1), torch.device("cpu"))


def test_a_job_counts_steps_and_stops_where_its_rule_says(snapshot: Snapshot) -> None:
    whole = generate_ids(GenerationJob(snapshot.generator, [5, 6], 22, SEEDED, eos_id=NO_EOS))
    assert (len(whole.token_ids), whole.steps, whole.finish_reason) == (22, 6, "length")
    rule = GenerationJob(snapshot.generator, [5, 6], 22, SEEDED, eos_id=NO_EOS, stop=lambda ids: len(ids) >= 8)
    cut = generate_ids(rule)
    assert (cut.token_ids, cut.steps, cut.finish_reason) == (whole.token_ids[:8], 2, "stop")


def test_end_of_text_ends_a_job_and_no_eos_does_not(snapshot: Snapshot) -> None:
    whole = generate_ids(GenerationJob(snapshot.generator, [5], 30, SEEDED, eos_id=NO_EOS))
    end = whole.token_ids[10]
    first = whole.token_ids.index(end)
    ended = generate_ids(GenerationJob(snapshot.generator, [5], 30, SEEDED, eos_id=end))
    assert (ended.token_ids, ended.finish_reason) == (whole.token_ids[:first], "stop")


async def test_closing_the_engine_cancels_what_runs_and_what_waits(snapshot: Snapshot) -> None:
    engine = GenerationPool(max_concurrent=1, queue_limit=4, request_timeout=60)
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(_: list[int]) -> bool:
        loop.call_soon_threadsafe(begun.set)
        return False

    job = GenerationJob(snapshot.generator, [], 1000, SEEDED, eos_id=NO_EOS, stop=tell)
    jobs = [asyncio.create_task(engine.generate(job)) for _ in range(2)]
    async with asyncio.timeout(10):
        await begun.wait()
    assert engine.queued == 1
    await asyncio.to_thread(engine.close)
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert isinstance(results[0], GenerationCancelledError)
    assert isinstance(results[1], GenerationCancelledError)
    with pytest.raises(GenerationCancelledError):
        await engine.generate(GenerationJob(snapshot.generator, [], 4, SEEDED))
    assert (engine.running, engine.queued) == (0, 0)
