"""The command ``trainer score``: has a teacher score data once, and keeps its rows in a folder."""

import shlex
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from latentforge.trainer.cli.opening import held, run_context, user_errors
from latentforge.trainer.cli.options import ReadingOptions, RunOptions, with_groups


@with_groups
def score(
    options: ReadingOptions,
    data: Annotated[Path, typer.Argument(help="A packed folder, or other data (--data of `trainer run`).")],
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

    from latentforge.trainer.cli.score_progress import score_bar
    from latentforge.trainer.data.prepare import is_packed, run_data
    from latentforge.trainer.errors import TrainerError
    from latentforge.trainer.kept.made import kept_by
    from latentforge.trainer.kept.manifest import KeptTeacher
    from latentforge.trainer.kept.score import Scoring, Shard
    from latentforge.trainer.run.interrupt import StopRequest
    from latentforge.trainer.targets.choose import target_kind
    from latentforge.trainer.targets.documents import document_texts
    from latentforge.trainer.teacher.connection import TeacherLink

    try:
        part = Shard.parse(shard)
    except TrainerError as error:
        raise typer.BadParameter(str(error), param_hint="--shard") from None
    unpacked = [text for text in (data, options.held_out) if text is not None and not is_packed(text)]
    if part.count > 1 and unpacked:
        raise typer.BadParameter(
            f"several processes share packed data; make it of {unpacked[0]} with `trainer pack` first",
            param_hint="--shard",
        )
    with user_errors(), StopRequest() as stop, ExitStack() as stack:
        overrides = {"teacher.targets": "score", "teacher.top_k": top_k, "teacher.share": share}
        run = run_context(RunOptions(data=data, **vars(options)), overrides, stop)
        targets = [target.strip() for target in (gateway or run.settings.gateway_target).split(",")]
        links = [stack.enter_context(TeacherLink.of(run.settings, stop, target)) for target in targets]
        recipe = run.recipe.teacher
        about = [link.teacher(run.tokenizer.fingerprint, None, recipe.top_k) for link in links]
        teachers = [KeptTeacher.of(answer) for answer in about]
        target_kind(run, f"at {targets[0]}", about[0])
        for target, teacher in zip(targets, teachers, strict=True):
            if teacher != teachers[0]:
                raise TrainerError(
                    f"--gateway: {targets[0]} has the teacher {teachers[0]}, {target} has {teacher}; name gateways of "
                    "one teacher"
                )
        # What is packed goes to the run's folder.
        with held(run) if unpacked else nullcontext():
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
            lambda data, index: document_texts(run, data, index),
            mask_documents=run.recipe.data.mask_documents,
            shard=part,
            in_flight=in_flight,
        )
        with score_bar(console) as show:
            done = scoring.run(stop, show)
        failed = f", {done.failed:,} failed and have no rows" if done.failed else ""
        typer.echo(f"{out}: {done.done:,} sequences of shard {shard}, {done.kept:,} of them were there{failed}")
