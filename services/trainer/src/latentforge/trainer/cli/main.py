"""The command line. Exit codes: 0 done or stopped on request, 1 failed, 2 used wrongly."""

import os
import time
from contextlib import ExitStack
from typing import Annotated

import typer

from latentforge.trainer.cli.collect import collect
from latentforge.trainer.cli.data import data_app, pack, train_tokenizer
from latentforge.trainer.cli.dry_run import dry_run
from latentforge.trainer.cli.evaluate import evaluate
from latentforge.trainer.cli.opening import forget, opened_run
from latentforge.trainer.cli.options import (
    DryRunOption,
    InitFromOption,
    MemoryOptions,
    RunOptions,
    TeacherOptions,
    begun_from,
    with_groups,
)
from latentforge.trainer.cli.score import score
from latentforge.trainer.cli.train import train_app
from latentforge.trainer.cli.warm import warm
from latentforge.trainer.cli.watch import plot, status

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Trains LatentForge's autoencoder and student and publishes checkpoints.",
)
app.add_typer(data_app, name="data")
app.command("pack")(pack)
app.command("tokenizer")(train_tokenizer)
app.add_typer(train_app, name="train")
app.command("evaluate")(evaluate)
app.command("warm")(warm)
app.command("score")(score)
app.command("collect")(collect)
app.command("status")(status)
app.command("plot")(plot)


@app.callback()
def _main() -> None:
    # Threads that spin while they wait cost a factor of four beside another busy process. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "WORLD_SIZE" in os.environ:
        # DDP warns of every model that could have had parameters without a gradient, and has none.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


@app.command("run")
@with_groups
def run_all(
    options: RunOptions,
    teacher: TeacherOptions,
    memory: MemoryOptions,
    init_from: InitFromOption = None,
    status_port: Annotated[
        int | None, typer.Option("--status-port", help="Serve GET /health, GET /status and GET /metrics here.")
    ] = None,
    status_host: Annotated[str, typer.Option("--status-host", help="The address to serve them at.")] = "127.0.0.1",
    dry: DryRunOption = False,
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="Stay up after the run is done, until SIGTERM.")
    ] = False,
) -> None:
    """Data, autoencoder, student: the whole job; what is finished is not done again."""
    from latentforge.trainer.results import SUMMARY
    from latentforge.trainer.run.lock import LOCK
    from latentforge.trainer.run.sinks.live import write_status
    from latentforge.trainer.run.status_server import StatusServer
    from latentforge.trainer.training.pipeline import run_pipeline, targets_line

    if keep_serving and status_port is None:
        raise typer.BadParameter("there is nothing to serve without --status-port", param_hint="--keep-serving")
    overrides = {**teacher.overrides, **memory.overrides, **begun_from(init_from)}
    if dry:
        dry_run(options, overrides, ["autoencoder", "student"])
        return
    with opened_run(options, overrides, teacher.gateway) as run, ExitStack() as until:
        is_main = run.ranks.is_main
        if status_port is not None and is_main:
            until.callback(StatusServer(run.status, status_host, status_port).close)
        if options.fresh:
            made = run.folder.iterdir() if run.folder.is_dir() else ()
            kept = "generated", LOCK
            forget(run, *(p for p in made if p.name not in kept), run.settings.checkpoints_dir / run.name)
        summary = run_pipeline(run, options.data, options.held_out, fresh=options.fresh)
        run.status.done = True
        if is_main:
            write_status(run.folder, run.status)
            checkpoints = summary.checkpoints
            typer.echo(f"{run.folder / SUMMARY}; {len(checkpoints)} checkpoints, the last is {checkpoints[-1]}")
            typer.echo(targets_line(summary))
        while keep_serving and not run.stop():
            time.sleep(0.2)
