"""Commands that look at runs and change nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentforge.trainer.cli.opening import user_errors

if TYPE_CHECKING:
    from latentforge.trainer.run.overview import Overview, Place

_UNITS = (("d", 86400), ("h", 3600), ("min", 60))


def status(
    run: Annotated[str, typer.Argument(help="A run's name (RUNS_DIR).")],
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Says where a run is: one that trains, one that is finished, or one that was killed."""
    from rich.console import Console
    from rich.table import Table

    from latentforge.core.settings import load_settings
    from latentforge.trainer.config.settings import TrainerSettings
    from latentforge.trainer.run.overview import overview_of

    with user_errors():
        settings = load_settings(TrainerSettings)
        overview = overview_of(settings.runs_dir, settings.checkpoints_dir, run)
        if as_json:
            typer.echo(overview.model_dump_json(indent=1))
            return
        table = Table(show_header=False, title=overview.run, title_justify="left")
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in _lines(overview):
            table.add_row(name, value)
        Console(markup=False).print(table)


def plot(
    runs: Annotated[list[str], typer.Argument(help="Names of runs (RUNS_DIR); several are drawn over one another.")],
    out: Annotated[Path, typer.Option("--out", help="The PNG.", show_default="RUN.png")] = Path(),
    stage: Annotated[
        str | None,
        typer.Option("--stage", help="student, token-level or autoencoder.", show_default="the first that it has"),
    ] = None,
) -> None:
    """Draws losses, CE and KD, acceptance, throughput and the wait for the teacher as a PNG."""
    from latentforge.core.settings import load_settings
    from latentforge.trainer.config.settings import TrainerSettings
    from latentforge.trainer.run.overview import run_folder
    from latentforge.trainer.run.plot import STAGES, plot_runs

    if stage is not None and stage not in STAGES:
        raise typer.BadParameter(f"{stage!r} is none of {', '.join(STAGES)}", param_hint="--stage")
    with user_errors():
        settings = load_settings(TrainerSettings)
        folders = [run_folder(settings.runs_dir, name) for name in dict.fromkeys(runs)]
        path = Path(f"{runs[0]}.png") if out == Path() else out
        drawn = plot_runs(folders, path, stage)
        typer.echo(f"{path}: {drawn} of {', '.join(folder.name for folder in folders)}")


def _lines(o: "Overview") -> list[tuple[str, str]]:
    share = f" ({o.step / o.of:.0%})" if o.of else ""
    of = f"/{o.of:,}" if o.of is not None else ""
    where = f"{o.stage} {o.step:,}{of}{share}" if o.step or o.of else o.stage
    process = f"{o.host}, process {o.pid}, seen {duration(o.age)} ago" if o.host and o.age is not None else "-"
    lines = [
        ("state", o.state),
        ("stage", where),
        ("left in the stage", duration(o.eta) if o.eta is not None else "-"),
        ("left in the run", duration(o.run_eta) if o.run_eta is not None else "-"),
        ("losses", _figures(o.losses)),
        ("held-out", _figures(o.held_out)),
        *([("drafts", drafts)] if (drafts := _drafts(o.held_out)) else []),
        ("tokens/s", f"{o.tokens_per_s:,.0f}" if o.tokens_per_s is not None else "-"),
        ("waited for the teacher", duration(o.teacher_wait_seconds) if o.teacher_wait_seconds is not None else "-"),
        ("last save", _place(o.last_save)),
        ("last publish", f"{_place(o.last_publish)}, {o.checkpoints} in all" if o.last_publish else "-"),
        ("process", process),
        ("disk", f"run {o.run_bytes / 1e6:,.1f} MB, checkpoints {o.checkpoint_bytes / 1e6:,.1f} MB"),
    ]
    lines += [("waiting for", o.waiting_for)] if o.waiting_for else []
    lines += [("incidents", ", ".join(f"{kind} {n}" for kind, n in o.counts.items()))] if o.counts else []
    return lines + ([("error", o.error)] if o.error else [])


def _figures(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items()) or "-"


def _drafts(figures: dict[str, float]) -> str:
    """How the teacher would receive the student's drafts; nothing where that is not known."""
    said = []
    if (accepted := figures.get("greedy_accepted")) is not None:
        said.append(f"{accepted:.2f} of 8 tokens accepted, greedy ({figures['greedy_agreement']:.1%} of all agree)")
    if (high := figures.get("acceptance")) is not None:
        said.append(f"{figures['acceptance_low']:.1%} to {high:.1%} of one token at temperature 1")
    return "; ".join(said)


def _place(place: "Place | None") -> str:
    return f"{place.name}, {duration(place.age)} ago" if place else "-"


def duration(seconds: float) -> str:
    """A time in its two largest units, like ``3 h 20 min``."""
    left = round(seconds)
    parts: list[str] = []
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join([*parts, f"{left} s"][:2])
