"""What a demo measured: one model, the table made of it, and results/demo.json."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table
from rich.text import Text

from latentforge.core.files import write_atomically
from latentforge.core.results import ResultsFile
from latentforge.trainer.results import AutoencoderFigures, CurvePoint, StudentFigures, TargetFigures

FILE = "demo.json"


class _DemoPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ObservedSwap(_DemoPart):
    """A change of the checkpoint that answers name; ``from_`` is None for the first."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    from_: Annotated[str | None, Field(alias="from")]
    to: str
    at: str


class Sample(_DemoPart):
    """What the last checkpoint wrote after a prompt."""

    prompt: str
    text: str
    checkpoint: str


class DecodeFigures(_DemoPart):
    """Speed of the student beside a token-level model of its backbone; the ratio is of their tokens/s."""

    student_tokens_per_s: float | None
    student_steps_per_s: float | None
    token_level_tokens_per_s: float | None
    ratio: float | None

    @classmethod
    def of(cls, bench: ResultsFile) -> "DecodeFigures":
        """From what ``inference bench`` wrote."""
        tokens = bench.by_id["decode_tokens_per_s"]
        return cls(
            student_tokens_per_s=tokens.value,
            student_steps_per_s=bench.by_id["latent_steps_per_s"].value,
            token_level_tokens_per_s=tokens.baseline_value,
            ratio=tokens.ratio,
        )


class DemoResult(TargetFigures):
    """results/demo.json: how it was made, the run's summary, and what was proved and measured over REST.

    Attributes:
        seconds: of each stage, and in total.
        swaps: every checkpoint that answered, in order.
    """

    format_version: Literal[1] = 1
    name: Literal["demo"] = "demo"
    command: str
    commit: str
    device: str
    date: str
    seed: int
    run: str
    recipe: dict[str, object]
    seconds: dict[str, float]
    ae: AutoencoderFigures
    student: StudentFigures
    swaps: list[ObservedSwap]
    decode: DecodeFigures
    samples: list[Sample]

    def write(self, folder: Path) -> Path:
        path = folder / FILE
        # As in the run's own summary, what does not apply is left out.
        absent = {name for name in TargetFigures.model_fields if getattr(self, name) is None}
        values = self.model_dump(mode="json", exclude=absent)
        write_atomically(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
        return path


def report_table(result: DemoResult) -> Table:
    """The figures that tell whether the job was done, and how well."""
    ae, student, teacher, decode = result.ae, result.student, result.teacher, result.decode
    table = Table(title=f"{result.run} on {result.device}", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    assert teacher is not None
    lines = {
        "autoencoder": (
            f"K={ae.k}, D={ae.d}; held-out tokens exact {ae.token_exact:.3%}, whole chunks "
            f"{ae.chunk_exact:.3%}, tokens under posterior noise {ae.token_exact_noisy:.3%}{_untrained(ae)}"
        ),
        "student": f"{student.steps:,} steps, {student.tokens:,} tokens",
        "held-out KD": f"{student.kd_first:.3f} -> {student.kd_last:.3f} nats/token",
        "held-out CE": (
            f"{student.ce_first:.3f} -> {student.ce_last:.3f} nats/token (unigram {result.unigram_ce:.3f}, "
            f"teacher {teacher.held_out_nll:.3f})"
        ),
        "parts": _parts(result.curve[-1]),
        "teacher": f"{teacher.model} ({teacher.revision[:12]})",
        **_targets_line(result),
        "checkpoints": f"{len(result.checkpoints)} published, each picked up without a restart",
        "decode": (
            f"{decode.student_tokens_per_s:.0f} tokens/s in {decode.student_steps_per_s:.0f} latent steps/s; "
            f"token-level model {decode.token_level_tokens_per_s:.0f} tokens/s; ratio {decode.ratio:.2f}"
        ),
        "seconds": ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in result.seconds.items()),
    }
    for name, text in lines.items():
        table.add_row(name, text)
    table.add_section()
    for sample in result.samples:
        # Text: what a model writes may look like markup.
        table.add_row(Text(sample.prompt), Text(sample.text))
    return table


def _untrained(ae: AutoencoderFigures) -> str:
    if ae.untrained is None:
        return ""
    return f"; untrained {ae.untrained.token_exact:.3%} and {ae.untrained.token_exact_noisy:.3%} of tokens"


def _parts(last: CurvePoint) -> str:
    worth = {"backbone": last.worth_backbone, "latent": last.worth_latent}
    worth |= {"induction heads": last.worth_copy, "window": last.worth_window}
    there = [f"{name} {value:.3f}" for name, value in worth.items() if value is not None]
    return f"{', '.join(there)} nats/token are lost without each"


def _targets_line(result: DemoResult) -> dict[str, str]:
    if made := result.generated:
        text = f"{made.continuations:,} continuations, {made.tokens:,} tokens; {made.dropped:,} dropped"
        return {"written by the teacher": text}
    cache = result.cache
    assert cache is not None
    text = (
        f"{cache.hits:,} hits, {cache.misses:,} misses; {cache.rows_from_cache:,} of {cache.rows:,} teacher rows came "
        "from it"
    )
    return {"cache": text}
