"""Publishers and servers that are killed at any moment: nothing half-written is served or answered."""

import asyncio
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import list_checkpoints

from .conftest import Clients, ServerProcess, check_each_is_what_its_checkpoint_writes_alone, get, until_served

Publish = Callable[..., Path]
MakeServer = Callable[..., ServerProcess]

# Publishes copies of checkpoints, step after step, writing so slowly that a kill finds it in the middle of a file.
_PUBLISHER = """
import itertools, sys, time
from pathlib import Path
from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.manifest import ManifestDraft
from latentforge.core.publishing import publish_checkpoint

root, sources, first = Path(sys.argv[1]), [Path(name) for name in sys.argv[3:]], int(sys.argv[2])
print("ready", flush=True)
for step in itertools.count(first):
    source = sources[step % len(sources)]
    manifest = read_manifest(source, anywhere=True)

    def write(folder):
        for file in source.rglob("*"):
            if file.is_file() and file.parent != source:
                (folder / file.relative_to(source)).parent.mkdir(exist_ok=True)
                with (folder / file.relative_to(source)).open("wb") as out:
                    content = file.read_bytes()
                    for start in range(0, len(content), 8192):
                        out.write(content[start : start + 8192])
                        out.flush()
                        time.sleep(0.002)

    draft = ManifestDraft(**{name: getattr(manifest, name) for name in ManifestDraft.model_fields})
    publish_checkpoint(root, "demo", step, draft, write)
"""


@pytest.mark.e2e
@pytest.mark.slow
async def test_kills_at_random_leave_nothing_half_written(
    make_server: MakeServer, publish: Publish, checkpoints: Path
) -> None:
    chance = random.Random(0)
    sources = [
        str(publish(1, run=f"source{weights}", weights=weights).rename(checkpoints.parent / f"{weights}"))
        for weights in (1, 2, 3)
    ]
    for weights in (1, 2, 3):
        (checkpoints / f"source{weights}").rmdir()
    publish(1)
    server = make_server(exact=True, slots=4, queue_limit=100)
    await until_served(server, 1)
    clients = Clients(server.url)
    clients.start(8)
    for kill in range(8):
        step = read_manifest(list_checkpoints(checkpoints / "demo")[-1]).step + 1
        command = [sys.executable, "-c", _PUBLISHER, str(checkpoints), str(step), *sources]
        publisher = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        assert publisher.stdout is not None
        await publisher.stdout.readline()
        await asyncio.sleep(chance.uniform(0.05, 1.5))
        publisher.kill()
        await publisher.wait()
        if kill % 2:
            await asyncio.to_thread(server.kill)
            server.start()
        newest = read_manifest(list_checkpoints(checkpoints / "demo")[-1]).step
        await until_served(server, newest)
        # Some answers of it.
        await asyncio.sleep(0.3)
    await clients.stop()
    answered = [each for each in clients.asked if each.status == 200]
    # A server that has just started listens before it has a checkpoint.
    refused = [each for each in clients.asked if each.status != 200]
    assert {each.answer["error"]["code"] for each in refused} <= {"no_checkpoint"}
    assert clients.lost > 0
    assert len(answered) > 50
    assert len(check_each_is_what_its_checkpoint_writes_alone(answered, checkpoints)) >= 4
    assert (await get(server.url, "/health"))["quarantined"] == []
