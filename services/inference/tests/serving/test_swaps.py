"""Many clients while checkpoints come: none fails, and each gets what the checkpoint that it is told writes alone."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Clients, ServerProcess, check_each_is_what_its_checkpoint_writes_alone, get, until_served

Publish = Callable[..., Path]
MakeServer = Callable[..., ServerProcess]


@pytest.mark.e2e
async def test_swaps_under_load_change_no_answer_and_fail_none(
    make_server: MakeServer, publish: Publish, checkpoints: Path
) -> None:
    publish(1)
    server = make_server(exact=True, slots=6, queue_limit=100)
    await until_served(server, 1)
    clients = Clients(server.url)
    clients.start(24)
    for step in range(2, 12):
        # One in four is no good, and changes nothing.
        if step % 4 == 0:
            await asyncio.to_thread(publish, step, tokenizer_fingerprint="0000")
            await asyncio.sleep(0.3)
        else:
            await asyncio.to_thread(publish, step)
            await until_served(server, step)
    pin = checkpoints / "demo" / "pinned"
    pin.write_text("step-00000003")
    await until_served(server, 3)
    pin.unlink()
    await until_served(server, 11)
    await clients.stop()
    assert clients.lost == 0
    answered = check_each_is_what_its_checkpoint_writes_alone(clients.asked, checkpoints)
    assert len(answered) >= 8
    assert len(clients.asked) > 100
    status = await get(server.url, "/status")
    assert [(swap["from"], swap["to"]) for swap in status["swaps"]][-2:] == [
        ("demo/step-00000011", "demo/step-00000003"),
        ("demo/step-00000003", "demo/step-00000011"),
    ]
    assert {bad["checkpoint"] for bad in status["quarantined"]} == {"demo/step-00000004", "demo/step-00000008"}
