"""Many clients while checkpoints come: none fails, and each gets what the checkpoint that it is told writes alone."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import Clients, ServerProcess, check_each_is_what_its_checkpoint_writes_alone, get, until_served

Publish = Callable[..., Path]
MakeServer = Callable[..., ServerProcess]
# Bad from the moment at which it can be seen.
BAD: list[dict[str, Any]] = [
    {"spoil": lambda student: student.bias.fill_(torch.nan)},
    {"spoil": lambda student: student.embedding.weight.zero_()},
    {"chunk_size": 8},
    {"autoencoder_chunk_size": 8},
    {"tokenizer_fingerprint": "0" * 64},
]


@pytest.mark.e2e
async def test_swaps_under_load_change_no_answer_and_fail_none(
    make_server: MakeServer, publish: Publish, checkpoints: Path
) -> None:
    publish(1)
    server = make_server(exact=True, slots=6, queue_limit=100)
    await until_served(server, 1)
    clients = Clients(server.url)
    clients.start(56)
    for step in range(2, 17):
        # One in three is no good, and changes nothing.
        if step % 3 == 0:
            await asyncio.to_thread(publish, step, **BAD[step // 3 - 1])
            await asyncio.sleep(0.3)
        else:
            await asyncio.to_thread(publish, step)
            await until_served(server, step)
    pin = checkpoints / "demo" / "pinned"
    pin.write_text("step-00000004")
    await until_served(server, 4)
    pin.unlink()
    await until_served(server, 16)
    await clients.stop()
    assert clients.lost == 0
    answered = check_each_is_what_its_checkpoint_writes_alone(clients.asked, checkpoints)
    assert len(answered) >= 10
    assert len(clients.asked) > 100
    status = await get(server.url, "/status")
    assert [(swap["from"], swap["to"]) for swap in status["swaps"]][-2:] == [
        ("demo/step-00000016", "demo/step-00000004"),
        ("demo/step-00000004", "demo/step-00000016"),
    ]
    assert {bad["checkpoint"] for bad in status["quarantined"]} == {
        f"demo/step-{step:08}" for step in (3, 6, 9, 12, 15)
    }
