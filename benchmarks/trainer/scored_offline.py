"""Kept rows: how large they are, and how long a run waits for them."""

import io
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rich.console import Console

from benchmarks.gateway.servers import free_port
from benchmarks.trainer.bench import TrainerBench
from benchmarks.trainer.workload import TEACHER
from latentforge.core.results import Result
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.text.packing import pack_jsonl
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.recipe import load_recipe
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.data.sources import write_stdlib
from latentforge.trainer.kept.manifest import DATA, KeptManifest
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.run.status import Status
from latentforge.trainer.training.autoencoder import train_autoencoder
from latentforge.trainer.training.student import train_student
from tools.gateway import gateway_answers, gateway_command
from tools.processes import Children

_TOP_K = 20
_GATEWAY_SECONDS = 180.0
_STEPS, _QUICK_STEPS, _QUICK_DOCUMENTS = 40, 8, 2


def scored_offline(bench: TrainerBench) -> list[Result]:
    """The standard library's held-out files, packed as the recipe says, scored once by the shipped teacher (k = 20,
    float16) through a gateway with `trainer score`; the gateway is stopped, and a student learns from the folder. Bytes
    of the Parquet files over the positions that have rows; and seconds that the training loop waited for rows over
    the seconds that the student's stage took, validations and checkpoints included (scored_offline_wait).
    """
    tokenizer = TextTokenizer(TEACHER)
    steps = {"student.optim.steps": _QUICK_STEPS if bench.quick else _STEPS, "autoencoder.optim.steps": 4}
    overrides = steps | {"teacher.top_k": _TOP_K, "teacher.targets_from": [str(bench.scratch / "kept")]}
    recipe = load_recipe(bench.recipe, TrainerSettings().recipes_dir, overrides | {"seed": bench.seed})
    packed, folder = _packed(bench, tokenizer, recipe.data.sequence_length, recipe.chunk_size), bench.scratch / "kept"
    _score(bench, packed, folder)
    size = sum(path.stat().st_size for path in (folder / DATA).iterdir())
    sequences = sum(part.num_sequences for part in KeptManifest.read(folder).splits.values())
    positions = sequences * (packed.meta.sequence_length - 1)
    settings = TrainerSettings(
        # Where nobody answers.
        gateway_target=f"127.0.0.1:{free_port()}",
        runs_dir=bench.scratch / "runs",
        checkpoints_dir=bench.scratch / "checkpoints",
        tokenizer_path=TEACHER,
        trainer_gateway_patience_seconds=0,
    )
    shares = []
    for repeat in range(bench.repeats):
        name = f"offline-{repeat}"
        run = RunContext(name, recipe, settings, tokenizer, Status(name), console=Console(file=io.StringIO()))
        train, held_out = split_tail(packed)
        train_autoencoder(run, train, held_out)
        result = train_student(run, train, held_out, run.folder / "autoencoder")
        waited = run.status.teacher_wait_seconds or 0.0
        shares.append(waited / result.seconds)
        bench.report.figure(f"scored_offline_wait: {shares[-1]:.4f} of the run")
    bench.measured["scored_offline"] = {"bytes": size, "positions": positions, "sequences": sequences}
    return [
        Result(id="scored_offline", value=size / positions, unit="bytes/position"),
        bench.alone("scored_offline_wait", shares, unit="of the run"),
    ]


def _packed(bench: TrainerBench, tokenizer: TextTokenizer, length: int, chunk_size: int) -> PackedData:
    source = bench.scratch / "library.jsonl"
    write_stdlib(source, "held-out")
    if bench.quick:
        with source.open(encoding="utf-8") as lines:
            some = list(islice(lines, _QUICK_DOCUMENTS))
        source.write_text("".join(some), encoding="utf-8")
    out = bench.scratch / "packed"
    pack_jsonl(source, out, tokenizer, sequence_length=length, chunk_size=chunk_size, split="train")
    return PackedData(out)


def _score(bench: TrainerBench, packed: PackedData, out: Path) -> None:
    port, logs = free_port(), bench.scratch / "logs"
    environment = {
        "GATEWAY_PORT": str(port),
        "TEACHER_BACKEND": "embedded",
        "CACHE_URL": "none",
        "TOKENIZER_PATH": str(TEACHER),
        "RUNS_DIR": str(bench.scratch / "runs"),
    }
    target = f"127.0.0.1:{port}"
    command: Sequence[str] = [
        str(Path(sys.executable).with_name("trainer")),
        *("score", str(packed.folder), "--out", str(out), "--recipe", bench.recipe, "--run", "scored"),
        *("--gateway", target, "--top-k", str(_TOP_K)),
    ]
    with Children(logs, env=environment) as children:
        children.start("teacher-gateway", gateway_command())
        children.wait_until(lambda: gateway_answers(target), "starting the gateway", seconds=_GATEWAY_SECONDS)
        scoring = children.start("score", command)
        children.finish(scoring)
