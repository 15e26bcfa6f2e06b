"""Twice as many clients as the server takes: they are told to come back, nobody fails, and memory stays flat.

``SOAK_SECONDS`` says for how long; ``make soak`` for ten minutes.
"""

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import httpx
import pytest

from .conftest import (
    Asked,
    Clients,
    ServerProcess,
    check_each_is_what_its_checkpoint_writes_alone,
    until_idle,
    until_served,
)

Publish = Callable[..., Path]
MakeServer = Callable[..., ServerProcess]

_SECONDS = float(os.environ.get("SOAK_SECONDS", "20"))
_MAY_GROW = 24 * 2**20
_KEPT_OF_EACH_CHECKPOINT = 40


async def hang_up(url: str, chance: random.Random) -> None:
    """Asks for a long text and leaves before it is there."""
    async with httpx.AsyncClient(base_url=url, timeout=chance.uniform(0.02, 0.3)) as client:
        with contextlib.suppress(httpx.TimeoutException):
            await client.post("/generate", json={"prompt": "def f(", "max_tokens": 900})


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(_SECONDS + 240)
async def test_twice_the_capacity_is_answered_429_and_memory_stays_flat(
    make_server: MakeServer, publish: Publish, checkpoints: Path
) -> None:
    publish(1)
    server = make_server(exact=True, slots=4, queue_limit=4)
    await until_served(server, 1)
    clients = Clients(server.url, max_tokens=200)
    clients.start(16)
    chance, loop = random.Random(1), asyncio.get_running_loop()
    begin, statuses, step = loop.time(), Counter[int](), 1
    warm: int | None = None
    answers: dict[str, list[Asked]] = {}
    while loop.time() < begin + _SECONDS:
        await hang_up(server.url, chance)
        # What is kept here is bounded as well.
        arrived, clients.asked = clients.asked, []
        statuses.update(each.status for each in arrived)
        for each in arrived:
            if each.status == 200:
                kept = answers.setdefault(each.answer["checkpoint"], [])
                kept += [each][: _KEPT_OF_EACH_CHECKPOINT - len(kept)]
        assert set(statuses) <= {200, 429}, [each for each in arrived if each.status not in (200, 429)]
        if loop.time() > begin + _SECONDS * (step + 1) / 8:
            step += 1
            await asyncio.to_thread(publish, step)
            await until_served(server, step)
        if warm is None and loop.time() > begin + _SECONDS / 2:
            warm = server.resident_bytes()
    assert warm is not None
    grown = server.resident_bytes() - warm
    await clients.stop()
    assert clients.lost == 0
    assert grown < _MAY_GROW, f"{grown / 2**20:.0f} MiB more than after half of the time"
    assert statuses[429] > 20
    assert statuses[200] > 20
    assert len(check_each_is_what_its_checkpoint_writes_alone(list(chain(*answers.values())), checkpoints)) > 1
    await until_idle(server.url)
