"""Makes the shipped student: trains it on the standard library, measures it, and writes checkpoint and model card.

Needs a teacher-gateway (``make student`` starts one); an interrupted run resumes where it stopped.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from latentforge.core.checkpoints import chosen_checkpoint, list_checkpoints
from latentforge.core.results import Result, cpu_description
from latentforge.model.golden import GOLDEN_TOKENS
from latentforge.model.io import load_student
from latentforge.model.model_card import front_matter
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.data.corpus import source_files, stdlib_root
from latentforge.trainer.results import EVALUATION, AutoencoderResult, Evaluation, StudentResult
from latentforge.trainer.training.publish import golden_text
from models.shipping import FIGURES, license_of, renew_manifest, sections_by_hand, store_in_bfloat16

RUN = "stdlib-student"
RECIPE = Path(__file__).with_name("stdlib-student.toml")
HELD_OUT = {"stdlib": "standard library", "packages": "networkx, jinja2, anyio"}

MODEL_CARD = """\
{front_matter}

# stdlib-student

The student that LatentForge ships: a model that writes {k} tokens per autoregressive step, so that a fresh clone has
something to serve. `make serve` and `make infer` use it while no checkpoint is published. It writes text that looks
like Python and repeats itself; it is not useful otherwise.

| | |
| --- | --- |
| teacher | {teacher} |
| data | the Python standard library's own sources, split by file name, without what held-out files have too |
| trained on | {tokens:,} tokens in {steps:,} steps, seed {seed} |
| recipe | `models/stdlib-student.toml` |
| autoencoder | K = {k}, D = {d}; {autoencoder:,} parameters, of which this student reads nothing |
| student | {layers} layers of width {hidden}, {last} of them at every token; {student:,} parameters |
| licence of the data | Python Software Foundation License, version 2; these weights: MIT, like the project |
| device, time | {device}; {minutes:.0f} minutes |
| date | {date} |
| checkpoint | `{checkpoint}`, bfloat16 safetensors |

Made by `{command}`.

"""
MEASURED = (
    FIGURES
    + """
`trainer evaluate`, seed {seed}, {device}, {date}, on held-out files that nothing was trained on; in
brackets the 95 % interval. [The trainer](../../services/trainer/README.md#evaluation) says what each figure is.
`kl_to_teacher` is over the teacher's top 20, the realised token and the remaining mass: a lower bound of the full KL,
which `kl_full` is at the beginnings of 8 sequences.
What it is worth beside its teacher's layers and a GRU: [results](../../docs/results/worth/README.md).
`make student ARGS=--measure-only` measures anew.

{table}"""
)


@dataclass(frozen=True)
class Commands:
    """The programs of this environment.

    Attributes:
        work: folder for texts and evaluations.
    """

    work: Path

    def trainer(self, *arguments: object) -> None:
        command = [str(Path(sys.executable).with_name("trainer")), *map(str, arguments)]
        if code := subprocess.run(command, check=False).returncode:
            raise typer.Exit(code)

    def evaluate(self, checkpoint: Path, text: str, more: Sequence[str]) -> Evaluation:
        """A checkpoint's evaluation on held-out text."""
        data, out = self.work / f"{text}.jsonl", self.work / text
        if not data.exists():
            self.trainer("data", text, "--split", "held-out", "--out", data)
        self.trainer("evaluate", checkpoint, data, "--out", out, *more)
        return Evaluation.read(max(out.glob("eval_*.json")))

    def evaluations(self, checkpoint: Path, options: str) -> dict[str, Evaluation]:
        """Its evaluations by held-out text."""
        return {text: self.evaluate(checkpoint, text, shlex.split(options)) for text in HELD_OUT}


def measured(evaluations: dict[str, Evaluation]) -> str:
    """The card's part about figures."""
    return MEASURED.format(
        seed=evaluations["stdlib"].seed,
        device=cpu_description(),
        date=date.today().isoformat(),
        table=table(evaluations),
    )


def table(evaluations: dict[str, Evaluation]) -> str:
    """The figures in Markdown, a column for each held-out text."""
    found = {text: evaluation.by_id for text, evaluation in evaluations.items()}
    units = {name: result.unit for results in found.values() for name, result in results.items()}
    lines = ["| " + " | ".join(["figure", *(HELD_OUT[text] for text in found), "unit"]) + " |"]
    lines.append("| --- " * (len(found) + 2) + "|")
    for name, unit in units.items():
        cells = (_cell(results[name]) if name in results else "" for results in found.values())
        lines.append("| " + " | ".join([f"`{name}`", *cells, unit]) + " |")
    return "\n".join([*lines, ""])


def _cell(result: Result) -> str:
    """A value, and in brackets its interval where it has one."""
    if result.value is None:
        return ""
    interval = "" if result.low is None else f" ({result.low:.4g} – {result.high:.4g})"
    return f"{result.value:.4g}{interval}"


def model_card(trained: Path, checkpoint: Path, evaluation: Evaluation, settings: Sequence[str]) -> str:
    """The card's part about how a run's checkpoint was made."""
    record = StudentResult.read(trained / "student.json")
    autoencoder = AutoencoderResult.read(trained / "autoencoder" / EVALUATION)
    student = load_student(checkpoint / "student")
    num_parameters = sum(p.numel() for p in student.parameters())
    return MODEL_CARD.format(
        front_matter=front_matter(license_of(RECIPE)),
        k=student.config.chunk_size,
        d=student.config.latent_size,
        teacher=evaluation.teacher,
        tokens=record.tokens,
        steps=record.steps,
        seed=evaluation.seed,
        autoencoder=(evaluation.checkpoint.parameters or 0) - num_parameters,
        student=num_parameters,
        layers=student.config.num_layers,
        last=student.config.chunk_decoder.num_layers,
        hidden=student.config.hidden_size,
        device=cpu_description(),
        minutes=(autoencoder.seconds + record.seconds) / 60,
        date=date.today().isoformat(),
        checkpoint=checkpoint.name,
        command=" ".join(["make student", *(["ARGS='" + " ".join(settings) + "'"] if settings else [])]),
    )


def golden_stdlib(tokenizer: TextTokenizer) -> str:
    """The beginning of the first file of the standard library that is held out, as training takes it."""
    texts = (tokenizer.encode(file.text) for file in source_files(stdlib_root(), "held-out"))
    return golden_text(tokenizer, texts, GOLDEN_TOKENS)


def main(
    out: Annotated[Path, typer.Option(help="Folder of the finished student.")] = Path("models") / RUN,
    work: Annotated[Path, typer.Option(help="Folder for texts and evaluations.")] = Path("build/student"),
    run: Annotated[str, typer.Option(help="The run's name.")] = RUN,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a value of the recipe.")
    ] = None,
    evaluation: Annotated[str, typer.Option(help="More options of trainer evaluate, in one string.")] = "",
    measure_only: Annotated[
        bool, typer.Option("--measure-only", help="Measure the finished student anew, and train nothing.")
    ] = False,
    manifest_only: Annotated[
        bool,
        typer.Option("--manifest-only", help="Write the finished student's manifest and card anew, and train nothing."),
    ] = False,
) -> None:
    """Trains the shipped student, measures it, and writes its checkpoint and model card."""
    commands = Commands(work)
    more = [part for value in setting or [] for part in ("--set", value)]
    card = out / "README.md"
    if out.absolute().name != run:
        raise typer.BadParameter(
            f"--out {out} must be called as the run, {run}: a server refuses checkpoints elsewhere"
        )
    if (measure_only or manifest_only) and not list_checkpoints(out):
        raise typer.BadParameter(f"{out} has no finished student; leave out --measure-only and --manifest-only")
    if manifest_only:
        renew_manifest(list_checkpoints(out)[-1], license_of(RECIPE), golden_stdlib)
        return
    if measure_only:
        about = card.read_text(encoding="utf-8").partition(FIGURES)[0]
        evaluations = commands.evaluations(list_checkpoints(out)[-1], evaluation)
    else:
        commands.trainer("run", "--recipe", RECIPE, "--run", run, *more)
        settings = TrainerSettings()
        checkpoint = chosen_checkpoint(settings.checkpoints_dir, run)
        assert checkpoint is not None
        small = work / run / checkpoint.name
        shutil.rmtree(small, ignore_errors=True)
        shutil.copytree(checkpoint, small)
        store_in_bfloat16(small, license_of(RECIPE), golden_stdlib)
        evaluations = commands.evaluations(small, evaluation)
        about = model_card(settings.runs_dir / run, small, evaluations["stdlib"], more)
        about += sections_by_hand(card.read_text(encoding="utf-8")) if card.is_file() else ""
        for old in list_checkpoints(out):
            shutil.rmtree(old)
        shutil.copytree(small, out / small.name)
    card.write_text(about + measured(evaluations), encoding="utf-8")
    typer.echo(f"{out}: {sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    typer.run(main)
