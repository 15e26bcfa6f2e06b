"""A process that loads a checkpoint again and again while its files are truncated and replaced under it."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from latentforge.core.manifest import MANIFEST

LOADER = """
import hashlib, sys
from pathlib import Path
import torch
from latentforge.core.manifest import CheckpointError
from latentforge.snapshots.snapshot import load_snapshot

torch.set_num_threads(1)
while not Path(sys.argv[2]).exists():
    try:
        snapshot = load_snapshot(Path(sys.argv[1]), torch.device("cpu"))
    except (CheckpointError, OSError) as error:
        print("refused", flush=True)
    else:
        weights = snapshot.model.state_dict().values()
        digest = hashlib.sha256(b"".join(weight.contiguous().numpy().tobytes() for weight in weights))
        print(snapshot.digest, digest.hexdigest(), flush=True)
"""
ROUNDS, WHOLE, TORN = 4, 2, 4


def files_of(place: Path) -> dict[str, bytes]:
    return {p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*") if p.is_file()}


def test_no_reader_dies_and_none_gets_weights_of_two_checkpoints(publish: Callable[..., Path], tmp_path: Path) -> None:
    place = publish(2, weights=1)
    versions = [files_of(place), files_of(publish(2, weights=5, run="other"))]
    # As that run says of itself, but for its name.
    about = json.loads(versions[1][MANIFEST]) | {"run": "demo"}
    versions[1][MANIFEST] = json.dumps(about).encode()
    names = sorted(set(versions[0]) & set(versions[1]))
    chance = random.Random(0)

    def restore(version: dict[str, bytes]) -> None:
        for name, content in version.items():
            (place / name).write_bytes(content)

    def damage() -> None:
        name = chance.choice(names)
        content = chance.choice(versions)[name]
        if chance.random() < 0.5:
            os.truncate(place / name, chance.randrange(len(content)))
        else:
            (place / name).write_bytes(content)

    log, end = tmp_path / "log", tmp_path / "end"
    command = [sys.executable, "-c", LOADER, str(place), str(end)]
    with log.open("w") as output:
        loader = subprocess.Popen(command, stdout=output, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def num_tries() -> int:
        return log.read_text().count("\n")

    def wait_for(tries: int, act: Callable[[], object] = lambda: None) -> None:
        last = num_tries() + tries
        while num_tries() < last and loader.poll() is None:
            act()
            time.sleep(0.001)

    try:
        for at in range(ROUNDS):
            restore(versions[at % 2])
            # The second try has begun after that.
            wait_for(WHOLE)
            wait_for(TORN, damage)
        end.touch()
        assert loader.wait(120) == 0
    finally:
        loader.kill()
        loader.wait()
    lines = log.read_text().splitlines()
    loaded = {tuple(line.split()) for line in lines if line != "refused"}
    digests = {hashlib.sha256(version[MANIFEST]).hexdigest() for version in versions}
    assert {digest for digest, _ in loaded} == digests
    # For each manifest one set of weights, whatever stood beside it while it was read.
    assert len(loaded) == 2
    assert "refused" in lines
