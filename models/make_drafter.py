"""Ships a run's drafter for SmolLM2-135M-Instruct: its newest checkpoint in bfloat16, and a card with its figures.

How it was trained is in the card; ``make bench-drafter`` measures it.
"""

import json
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import chosen_checkpoint, list_checkpoints
from latentforge.core.results import Result, cpu_description
from latentforge.model.io import load_student
from latentforge.model.model_card import front_matter
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.results import StudentResult
from models.shipping import FIGURES, sections_by_hand, store_in_bfloat16

NAME = "smollm2-student"
# Its tables begin as its teacher's, which is under it.
LICENSE = "apache-2.0"
_MOST_BYTES = 25e6

MODEL_CARD = """\
{front_matter}

# smollm2-student

A drafter for SmolLM2-135M-Instruct: in vLLM it drafts up to 8 tokens, the teacher verifies them in one pass, and the
text is the teacher's. `make demo-lossless` shows it, `make serve-vllm-drafted VLLM_LOCAL_MODEL=models/cache/smollm2
CHECKPOINT=models/smollm2-student` serves with it. Alone it writes poorly: it is a GRU with copy heads.

| | |
| --- | --- |
| teacher | {teacher}; Apache-2.0 |
| data | {continuations:,} continuations of up to 128 tokens that the teacher wrote \
(three quarters greedily, else at T = 0.8) after beginnings of documentation and Python and after questions \
(`trainer data prompts`), with its top 20 |
| trained on | {tokens:,} tokens in {steps:,} steps, seed 0{begun} |
| recipe | `services/trainer/recipes/drafter.toml` |
| student | GRU of width {width}, {heads} induction heads, corrections of rank {rank} to the \
{frequent:,} most frequent ids; {student:,} parameters |
| not used | packages that `benchmarks/drafter` asks about, and its questions |
| licence | Apache-2.0, as the teacher, from whose embeddings its tables begin |
| device, time | {device}; {minutes:.0f} minutes of one core, the writing of the continuations not counted |
| date | {date} |
| checkpoint | `{checkpoint}`, bfloat16 safetensors |

"""
MEASURED = (
    FIGURES
    + """
`{command}`, {device}, {date}; prompts that nothing was trained on. What each id is: `python -m benchmarks.drafter`
says below its table. Figures behind a method's name are that method's.

{table}"""
)


def card_of(checkpoint: Path, run: Path, targets: Sequence[Path], begun_with: str, about: str = "") -> str:
    """The card's part about how a checkpoint was made.

    Args:
        run: the run's folder.
        targets: folders of continuations that it learnt from.
        begun_with: what it began from, in words; nothing where from its teacher's tables.
        about: sections that were written by hand.
    """
    record, manifest = StudentResult.read(run / "student.json"), read_manifest(checkpoint)
    student = load_student(checkpoint / "student")
    config = student.config
    teacher = manifest.teacher
    card = MODEL_CARD.format(
        front_matter=front_matter(LICENSE),
        teacher=f"{teacher.model} ({teacher.backend}, {teacher.revision})" if teacher else "none",
        continuations=sum(map(_continuations, targets)),
        tokens=record.tokens,
        steps=record.steps,
        begun=f", begun from {begun_with}" if begun_with else "",
        width=config.chunk_decoder.width,
        heads=config.induction.num_heads,
        rank=config.chunk_decoder.rank,
        frequent=config.chunk_decoder.frequent_ids,
        student=sum(p.numel() for p in student.parameters()),
        device=cpu_description(),
        minutes=record.seconds / 60,
        date=date.today().isoformat(),
        checkpoint=checkpoint.name,
    )
    return card + about


def measured(bench: Path) -> str:
    """The card's part about figures, of a results file of ``bench-drafter``."""
    found: dict[str, Any] = json.loads(bench.read_text(encoding="utf-8"))
    lines = ["| id | value | unit | times | low – high |", "| --- | --- | --- | --- | --- |"]
    for result in (Result.model_validate(one) for one in found["results"]):
        value = "" if result.value is None else f"{result.value:.3g}"
        ratio = "" if result.ratio is None else f"{result.ratio:.2f} × {result.baseline}"
        span = "" if result.low is None or result.high is None else f"{result.low:.3g} – {result.high:.3g}"
        lines.append(f"| `{result.id}` | {value} | {result.unit} | {ratio} | {span} |")
    table = "\n".join([*lines, ""])
    return MEASURED.format(command=found["command"], device=found["device"], date=found["date"][:10], table=table)


def _continuations(folder: Path) -> int:
    """That the teacher wrote for training in a folder of ``trainer collect``."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    num: int = manifest["splits"]["train"]["num_sequences"]
    return num


def main(
    out: Annotated[Path, typer.Option(help="Folder of the finished drafter.")] = Path("models") / NAME,
    run: Annotated[str, typer.Option(help="The run whose newest checkpoint is shipped.")] = NAME,
    targets: Annotated[
        list[Path] | None, typer.Option(help="A folder of continuations that it learnt from; again for each.")
    ] = None,
    begun_with: Annotated[str, typer.Option(help="What the run began from, for the card.")] = "",
    bench: Annotated[
        Path | None, typer.Option(help="Results of bench-drafter: writes the card's figures, and ships nothing.")
    ] = None,
) -> None:
    """Ships a run's newest checkpoint, or writes the figures of the one that is shipped."""
    card = out / "README.md"
    if bench is not None:
        about = card.read_text(encoding="utf-8").partition(FIGURES)[0]
        card.write_text(about + measured(bench), encoding="utf-8")
        return
    settings = TrainerSettings()
    checkpoint = chosen_checkpoint(settings.checkpoints_dir, run)
    if checkpoint is None:
        raise typer.BadParameter(f"{settings.checkpoints_dir / run} holds no checkpoint; train --run {run} first")
    by_hand = sections_by_hand(card.read_text(encoding="utf-8")) if card.is_file() else ""
    for old in list_checkpoints(out):
        shutil.rmtree(old)
    shipped = out / checkpoint.name
    shutil.copytree(checkpoint, shipped)
    store_in_bfloat16(shipped, LICENSE)
    card.write_text(card_of(shipped, settings.runs_dir / run, targets or [], begun_with, by_hand), encoding="utf-8")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    typer.echo(f"{out}: {size / 1e6:.1f} MB")
    if size > _MOST_BYTES:
        raise typer.BadParameter(f"{out} has {size / 1e6:.1f} MB; at most {_MOST_BYTES / 1e6:.0f} are shipped")


if __name__ == "__main__":
    typer.run(main)
