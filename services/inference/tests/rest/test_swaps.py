"""Many clients while checkpoints come, are bad and are pinned: every answer is of one checkpoint, the one it names."""

import asyncio
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch

from latentforge.core.pins import remove_pin, write_pin
from latentforge.core.settings import load_settings
from latentforge.inference.checkpoints.snapshot import Snapshot, load_snapshot
from latentforge.inference.main import build
from latentforge.inference.settings import InferenceSettings
from latentforge.model.engine import offline
from latentforge.model.engine.requests import GenerationRequest
from latentforge.model.sampling import SamplingParams

CLIENTS, SWAPS = 24, 12
PROMPTS = ["", "import os", "def main(argv=None):\n    return naïve 東京", "x = 1\n" * 40]
# Bad from the moment at which it can be seen.
BAD: list[dict[str, Any]] = [
    {"spoil": lambda student: student.bias.fill_(torch.nan)},
    {"spoil": lambda student: student.embedding.weight.zero_()},
    {"chunk_size": 8},
    {"autoencoder_chunk_size": 8},
    {"tokenizer_fingerprint": "0" * 64},
]


def alone(snapshot: Snapshot, body: dict[str, Any]) -> list[int]:
    """What a request's answer is with nothing beside it."""
    params = SamplingParams(temperature=body["temperature"], seed=body["seed"])
    ends = frozenset({snapshot.decoding.eos_id})
    prompt_ids = snapshot.encode(body["prompt"])
    request = GenerationRequest(snapshot.decoding, prompt_ids, body["max_tokens"], params, ends)
    [result] = offline.run([request])
    return result.token_ids


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_no_answer_is_wrong_or_missing_while_checkpoints_are_swapped(
    publish: Callable[..., Path], checkpoints: Path
) -> None:
    fixed = {"checkpoints_dir": checkpoints, "inference_poll_seconds": 0.02, "inference_device": "cpu"}
    # Rounding depends on what is written beside a text, and now and then draws another token; exact, it never does.
    service = build(load_settings(InferenceSettings, torch_threads=1, inference_exact=True, **fixed))
    registry = service.registry
    places = {1: publish(1)}
    answers: list[tuple[dict[str, Any], dict[str, Any]]] = []
    over = False
    transport = httpx.ASGITransport(app=service.app)

    async def client_of(number: int, client: httpx.AsyncClient) -> None:
        chance = random.Random(number)
        while not over:
            body = {
                "prompt": chance.choice(PROMPTS),
                "max_tokens": chance.choice([1, 4, 13, 40]),
                "temperature": chance.choice([0.0, 1.0]),
                "seed": chance.randrange(1000),
            }
            response = await client.post("/generate", json=body)
            assert response.status_code == 200, response.text
            answers.append((body, response.json()))

    async def served(step: int) -> None:
        await until(lambda: registry.current is not None and registry.current.manifest.step == step)

    def is_answered(times: int) -> bool:
        return len(answers) >= times

    async with (
        service.app.router.lifespan_context(service.app),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=120) as client,
        asyncio.TaskGroup() as clients,
    ):
        await served(1)
        for number in range(CLIENTS):
            clients.create_task(client_of(number, client))
        for swap in range(SWAPS):
            enough = len(answers) + CLIENTS
            if swap % 4 == 3:
                write_pin(checkpoints / "demo", "step-00000001")
                await served(1)
                remove_pin(checkpoints / "demo")
                await served(max(places))
            else:
                step = max(places) + 2
                await asyncio.to_thread(publish, step - 1, **BAD[step // 2 % len(BAD)])
                places[step] = await asyncio.to_thread(publish, step)
                await served(step)
            await until(partial(is_answered, enough))
        over = True
    snapshots = {f"demo/{place.name}": load_snapshot(place, torch.device("cpu")) for place in places.values()}
    assert registry.num_swaps == 1 + SWAPS + SWAPS // 4
    assert {answer["checkpoint"] for _, answer in answers} == set(snapshots)
    for body, answer in answers:
        snapshot = snapshots[answer["checkpoint"]]
        assert answer["token_ids"] == alone(snapshot, body), (answer["checkpoint"], body)
        assert answer["text"] == snapshot.decode(answer["token_ids"])
    assert len(answers) >= SWAPS * CLIENTS
