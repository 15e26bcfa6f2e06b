"""Trainers as processes that cost a fork each: one server has imported everything for all of them."""

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

# What a run imports on its way.
_PRELOADED = ["latentforge.trainer.cli.main", "latentforge.trainer.training.pipeline", "latentforge.trainer.kept.score"]


def start_trainer(
    arguments: Sequence[str], environment: Mapping[str, str], log: Path, *, processes: int = 1, port: int = 0
) -> list[BaseProcess]:
    """Starts ``trainer`` on so many processes, with the environment that torchrun would give them.

    Args:
        arguments: of the command line.
        environment: beside this process's own.
        log: what all of them write is added to it.
        processes: their number.
        port: a free one, where they meet.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    started: list[BaseProcess] = []
    for rank in range(processes):
        group = {} if processes == 1 else _group(rank, processes, port)
        process = context.Process(target=_trainer, args=(list(arguments), {**environment, **group}, log), daemon=True)
        process.start()
        started.append(process)
    return started


def _group(rank: int, size: int, port: int) -> dict[str, str]:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return address | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}


def _trainer(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    os.environ.update(environment)
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = ["trainer", *arguments]
    from latentforge.trainer.cli.main import app

    app()
