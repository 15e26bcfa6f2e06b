"""The command ``trainer score``: has a teacher score data once, and keeps its rows in a folder."""

import shlex
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from latentforge.trainer.cli.opening import run_context, user_errors
from latentforge.trainer.cli.options import (
    BosOption,
    EosOption,
    HeldOutOption,
    PadOption,
    RecipeOption,
    RunOption,
    RunOptions,
    SetOption,
    TokenizerOption,
    with_groups,
)


@dataclass(frozen=True)
class ScoreOptions:
    """Which data, as a run of the recipe would read it."""

    recipe: RecipeOption = "demo"
    held_out: HeldOutOption = None
    run: RunOption = None
    tokenizer: TokenizerOption = None
    eos_id: EosOption = None
    pad_id: PadOption = None
    bos: BosOption = None
    sets: SetOption = None


@with_groups
def score(
    options: ScoreOptions,
    data: Annotated[Path, typer.Argument(help="A packed folder, or a JSONL file that is packed as a run would.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of kept rows; the same command resumes.")],
    shard: Annotated[str, typer.Option("--shard", help="i/n: this process scores the i-th of n parts.")] = "1/1",
    gateway: Annotated[
        str | None,
        typer.Option("--gateway", help="host:port, several with commas between.", show_default="GATEWAY_TARGET"),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Entries per row.", show_default="the recipe's")
    ] = None,
    share: Annotated[
        float | None,
        typer.Option("--share", min=0, max=1, help="Of the training sequences.", show_default="the recipe's"),
    ] = None,
) -> None:
    """Has a teacher score the training and the held-out data of a run, into Parquet files that runs learn from.

    Killed at any moment the same command resumes; files are whole or not there. Several processes, each with a
    --shard of its own, may write into one folder.
    """
    from rich.console import Console

    from latentforge.trainer.cli.score_progress import ScoreBar
    from latentforge.trainer.data.prepare import run_data
    from latentforge.trainer.errors import TrainerError
    from latentforge.trainer.kept.made import kept_by
    from latentforge.trainer.kept.manifest import KeptTeacher
    from latentforge.trainer.kept.score import Scoring, Shard
    from latentforge.trainer.run.interrupt import StopRequest
    from latentforge.trainer.teacher.connection import TeacherLink

    with user_errors(), StopRequest() as stop, ExitStack() as stack:
        part = Shard.parse(shard)
        if part.count > 1 and not data.is_dir():
            raise TrainerError(
                f"--shard {shard} of {data}: several processes share packed data; make it with `trainer pack` first"
            )
        own = {name: getattr(options, name) for name in ScoreOptions.__dataclass_fields__}
        overrides = {"teacher.top_k": top_k, "teacher.share": share}
        run = run_context(RunOptions(data=data, **own), overrides, stop)
        if run.recipe.data.mask_documents:
            raise TrainerError(
                "data.mask_documents=true: rows are kept of whole sequences, with the documents before in sight; set "
                "it to false, or learn from a gateway"
            )
        targets = (gateway or run.settings.gateway_target).split(",")
        links = [stack.enter_context(TeacherLink.of(run.settings, stop, target)) for target in targets]
        recipe = run.recipe.teacher
        about = [link.teacher(run.tokenizer.fingerprint, None, recipe.top_k) for link in links]
        teachers = [KeptTeacher.of(answer) for answer in about]
        for target, answer, teacher in zip(targets, about, teachers, strict=True):
            if not answer.can_score:
                raise TrainerError(f"the {answer.backend} teacher at {target} cannot score given text")
            if teacher != teachers[0]:
                raise TrainerError(
                    f"--gateway: {targets[0]} has the teacher {teachers[0]}, {target} has {teacher}; name gateways of "
                    "one teacher"
                )
        train, held_out = run_data(run, data, options.held_out)
        console = Console(stderr=True)
        made = kept_by(shlex.join(["trainer", *sys.argv[1:]]))
        in_flight = run.settings.trainer_prefetch_in_flight
        scoring = Scoring(
            out,
            {"train": train, "validation": held_out},
            links,
            teachers[0],
            recipe,
            made,
            shard=part,
            in_flight=in_flight,
        )
        with ScoreBar(console) as bar:
            done = scoring.run(stop, bar.show)
        failed = f", {done.failed:,} failed and have no rows" if done.failed else ""
        typer.echo(f"{out}: {done.done:,} sequences of shard {shard}, {done.kept:,} of them were there{failed}")
