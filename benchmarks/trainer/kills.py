"""Runs that are killed again and again, beside one that is not."""

import json
import random
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from threading import Event

from benchmarks.trainer.bench import TrainerBench
from benchmarks.trainer.killed_run import KilledRun
from latentforge.core.results import Result
from latentforge.trainer.data.corpus import source_files, stdlib_root

_KILLS, _KILLS_QUICK = 100, 2
# Runs at once: most of the time processes start.
_LANES = 2
# Kills that a run would see if none of them set it back.
_KILLS_A_RUN = 8
_DOCUMENTS, _DOCUMENTS_QUICK = 80, 5
# Saved after every step, and published after every second one: much of the time is spent in both.
_SETTINGS = {
    "teacher.targets": "text",
    "student.objective": "chunk-ce",
    "student.save_every": 1,
    "student.publish_every": 2,
    "student.keep_checkpoints": 2,
    "autoencoder.save_every": 1,
    "device": "cpu",
}
_SETTINGS_QUICK = {"student.optim.steps": 4, "autoencoder.optim.steps": 2}


def kills(bench: TrainerBench) -> list[Result]:
    """`trainer run` of the smoke recipe on text alone, on a CPU, one thread: packing, autoencoder, student, saves,
    publishes and retention. Its processes are killed (SIGKILL, the whole group) at random times after they took the
    run's lock (exponential, their mean an eighth of what a run takes that nobody kills), and the same command started
    again until the run is done; two such runs at once, then the next ones. Value: bits in which all that those runs
    leave differs from the run that nobody killed: weights, optimizers, packed data, checkpoints, results and metrics,
    times and speeds left out. kills_leftovers: files that only one of the two has, status, log and TensorBoard's left
    out. What was killed is told by names of temporary files and by status.json.
    """
    wanted = _KILLS_QUICK if bench.quick else _KILLS
    data = bench.scratch / "kills.jsonl"
    settings = _SETTINGS | {"seed": bench.seed} | (_SETTINGS_QUICK if bench.quick else {})
    options = ["--recipe", "smoke", "--data", str(data), *(f"--set={name}={value}" for name, value in settings.items())]
    _write(data, _DOCUMENTS_QUICK if bench.quick else _DOCUMENTS)
    whole = KilledRun(bench.scratch / "whole", options)
    seconds, _ = whole.work(None)
    found, stop = _Found(), Event()

    def lane(number: int) -> None:
        chance, left = random.Random(f"{bench.seed} {number}"), wanted // _LANES
        for place in count():
            if not left:
                return
            run = KilledRun(bench.scratch / f"killed-{number}-{place}", options, stop.is_set)
            moment: str | None = ""
            while moment is not None:
                _, moment = run.work(chance.expovariate(_KILLS_A_RUN / seconds) if left else None)
                if stop.is_set():
                    return
                if moment is not None:
                    left -= 1
                    found.moments.append(moment)
                    bench.report.figure(f"kills: {len(found.moments)} of {wanted}, in {moment}")
            found.add(run.folder.name, *whole.compared(run))
            shutil.rmtree(run.folder)

    with ThreadPoolExecutor(_LANES) as pool:
        try:
            for future in as_completed([pool.submit(lane, number) for number in range(_LANES)]):
                future.result()
        finally:
            stop.set()
    moments = Counter(found.moments)
    bench.measured["kills"] = {"kills": dict(moments.most_common()), "seconds_unkilled": seconds, **asdict(found)}
    told = ", ".join(f"{number} in {what}" for what, number in moments.most_common())
    bench.notes.append(f"kills: of {moments.total()} in {found.runs} runs, {told}")
    return [
        Result(id="kills", value=sum(found.differing.values()), unit=f"bits after {moments.total()} kills"),
        Result(id="kills_leftovers", value=len(found.leftovers), unit="files"),
    ]


@dataclass
class _Found:
    """What was done and seen.

    Attributes:
        runs: that were finished.
        moments: what each process was doing that was killed, in their order.
        differing: bits by run and file.
        leftovers: files of a run that only it has, or only the one that nobody killed.
    """

    runs: int = 0
    moments: list[str] = field(default_factory=list)
    differing: dict[str, int] = field(default_factory=dict)
    leftovers: list[str] = field(default_factory=list)

    def add(self, run: str, differing: dict[str, int], leftovers: list[str]) -> None:
        self.runs += 1
        self.differing |= {f"{run}/{name}": bits for name, bits in differing.items()}
        self.leftovers += [f"{run}/{name}" for name in leftovers]


def _write(path: Path, documents: int) -> None:
    files = source_files(stdlib_root(), "train")
    lines = (json.dumps({"text": file.text}) + "\n" for file, _ in zip(files, range(documents), strict=False))
    path.write_text("".join(lines), encoding="utf-8")
