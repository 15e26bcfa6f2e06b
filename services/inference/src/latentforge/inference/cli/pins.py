"""The commands that say which checkpoint is served: list, pin, unpin."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from latentforge.core.catalogue import PublishedCheckpoint, pin_checkpoint, published_checkpoints, unpin_run
from latentforge.core.command_line import errors_reported
from latentforge.core.manifest import CheckpointError
from latentforge.core.settings import load_settings
from latentforge.inference.settings import InferenceSettings

_Checkpoints = Annotated[Path | None, typer.Option("--checkpoints", help="Checkpoints folder (CHECKPOINTS_DIR).")]


def list_published(
    checkpoints: _Checkpoints = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, an object for each checkpoint.")] = False,
) -> None:
    """List what is published, newest first, and which is served by the rule."""
    settings = _settings(checkpoints)
    with errors_reported(OSError):
        found = published_checkpoints(settings.checkpoints_dir, _tell, followed=settings.checkpoint_run)
    if as_json:
        typer.echo(json.dumps([_described(one) for one in found], indent=1))
        return
    if not found:
        typer.echo(f"nothing is published in {settings.checkpoints_dir}")
        return
    console = Console()
    # Ids are copied from here, so a narrow pipe must not fold them.
    console.width = max(console.width, 120)
    console.print(_table(found))


def pin(
    checkpoint: Annotated[str, typer.Argument(metavar="RUN/STEP", help="Like demo/step-00001200, or demo/1200.")],
    checkpoints: _Checkpoints = None,
) -> None:
    """Serve one step of a run instead of its newest, until it is unpinned."""
    settings = _settings(checkpoints)
    with errors_reported(CheckpointError, OSError):
        place = pin_checkpoint(settings.checkpoints_dir, checkpoint)
    typer.echo(f"run {place.parent.name} is pinned to {place.name}")


def unpin(run: Annotated[str, typer.Argument(help="A run's name.")], checkpoints: _Checkpoints = None) -> None:
    """Serve a run's newest step again."""
    settings = _settings(checkpoints)
    with errors_reported(CheckpointError, OSError):
        was_pinned = unpin_run(settings.checkpoints_dir, run)
    typer.echo(f"run {run} is pinned no longer" if was_pinned else f"run {run} was not pinned")


def _settings(checkpoints: Path | None) -> InferenceSettings:
    with errors_reported():
        return load_settings(InferenceSettings, checkpoints_dir=checkpoints)


def _tell(error: Exception) -> None:
    sys.stderr.write(f"passed over: {error}\n")


def _described(one: PublishedCheckpoint) -> dict[str, Any]:
    about = None if one.manifest is None else one.manifest
    return {
        "id": one.id,
        "run": one.place.parent.name,
        "step": None if about is None else about.step,
        "created": None if about is None else about.created,
        "metrics": None if about is None else about.metrics,
        "wanted": one.is_wanted,
        "pinned": one.is_pinned,
        "problem": one.problem,
    }


def _table(found: list[PublishedCheckpoint]) -> Table:
    table = Table("checkpoint", "created", "metrics", "", box=None)
    for one in found:
        states = [word for word, holds in (("served", one.is_wanted), ("pinned", one.is_pinned)) if holds]
        metrics = {} if one.manifest is None else one.manifest.metrics
        table.add_row(
            one.id,
            "" if one.manifest is None else one.manifest.created[:19].replace("T", " "),
            "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()),
            "; ".join([*([" ".join(states)] if states else []), *([one.problem] if one.problem else [])]),
        )
    return table
