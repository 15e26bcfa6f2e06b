"""From options to a run: settings and recipe, the lock that holds it, and errors as words and exit codes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from latentforge.trainer.cli.options import RunOptions

if TYPE_CHECKING:
    from latentforge.trainer.config.recipe import Recipe
    from latentforge.trainer.config.settings import TrainerSettings
    from latentforge.trainer.run.context import RunContext
    from latentforge.trainer.run.ranks import Ranks

# Seconds: a pin that a server writes takes less.
_LEFT_AFTER = 60.0


@contextmanager
def user_errors() -> Iterator[None]:
    """Says what a user can put right in plain words, and ends with the right exit code."""
    from latentforge.core.command_line import DONE, errors_reported
    from latentforge.core.logs import configure_logging
    from latentforge.teacher_client.errors import TeacherError
    from latentforge.trainer.errors import RecipeError
    from latentforge.trainer.run.interrupt import Interrupted

    configure_logging("trainer")
    try:
        with errors_reported(ValueError, TeacherError, OSError, usage=(RecipeError,)):
            yield
    except Interrupted:
        typer.echo("stopped as asked; everything is saved. Run the same command to resume.", err=True)
        raise typer.Exit(DONE) from None


@contextmanager
def opened_run(options: RunOptions, overrides: Mapping[str, Any], gateway: str | None = None) -> "Iterator[RunContext]":
    """The run that the options name, held by this process and its group, until its end or the first signal.

    Args:
        options: which run.
        overrides: of its recipe, by dotted name.
        gateway: host:port; None takes the settings'.
    """
    from latentforge.trainer.run.interrupt import StopRequest
    from latentforge.trainer.run.ranks import joined_ranks

    with user_errors(), StopRequest() as stop, joined_ranks() as ranks:
        run = run_context(options, overrides, stop, gateway, ranks)
        if ranks.is_main:
            with held(run), _last_words(run), _tracked(run) as tracked:
                yield tracked
        else:
            yield run


def run_context(
    options: RunOptions,
    overrides: Mapping[str, Any],
    stop: Callable[[], bool],
    gateway: str | None = None,
    ranks: "Ranks | None" = None,
) -> "RunContext":
    """As :func:`opened_run`, without holding it.

    Raises:
        SettingsError, RecipeError, TextError: a setting, the recipe or the tokenizer cannot be used.
    """
    from rich.console import Console

    from latentforge.trainer.config.pretrained import check_vocabulary
    from latentforge.trainer.errors import RecipeError
    from latentforge.trainer.run.context import RunContext
    from latentforge.trainer.run.ranks import ALONE
    from latentforge.trainer.run.status import Status
    from latentforge.trainer.run.tokenizer import teachers_tokenizer

    settings, recipe = recipe_of(options, overrides, gateway)
    name = options.run or recipe.name
    started_from = recipe.student.init_checkpoint
    if started_from is not None and started_from.resolve().parent == (settings.checkpoints_dir / name).resolve():
        raise RecipeError(
            f"student.init_checkpoint={started_from} is of this run itself, which goes on by itself; choose another "
            "--run NAME for what starts from it"
        )
    data = recipe.data
    tokenizer = teachers_tokenizer(settings, eos_id=data.eos_id, pad_id=data.pad_id, bos=data.bos)
    tokenizer.check_ids()
    check_vocabulary(recipe.student, recipe.autoencoder, tokenizer, recipe.vocab_size or tokenizer.vocab_size)
    ranks = ranks or ALONE
    console = Console(stderr=True, quiet=not ranks.is_main)
    return RunContext(name, recipe, settings, tokenizer, Status(name), stop, console, ranks)


def recipe_of(
    options: RunOptions, overrides: Mapping[str, Any], gateway: str | None = None
) -> "tuple[TrainerSettings, Recipe]":
    """The settings, and the recipe that the options name with ``overrides`` by dotted name; raises as above."""
    from latentforge.core.settings import load_settings
    from latentforge.trainer.config.recipe import load_recipe, parse_override
    from latentforge.trainer.config.settings import TrainerSettings

    settings = load_settings(
        TrainerSettings,
        gateway_target=gateway,
        tokenizer_path=options.tokenizer,
        trainer_tracker=options.tracker,
    )
    chosen = {
        "data.sequence_length": options.sequence_length or _packed_length(options.data),
        "data.eos_id": options.eos_id,
        "data.pad_id": options.pad_id,
        "data.bos": options.bos,
        "data.text_column": options.text_column,
        "data.skip_bad": options.skip_bad,
    }
    given = dict(parse_override(text) for text in options.sets or [])
    return settings, load_recipe(options.recipe, settings.recipes_dir, {**chosen, **overrides, **given})


def forget(run: "RunContext", *places: Path) -> None:
    """Removes files and folders, where they are, once for all processes."""
    from latentforge.core.files import remove

    with run.ranks.main_first():
        for place in places if run.ranks.is_main else ():
            remove(place)


def _packed_length(data: Path | None) -> int | None:
    """Packed data brings its own sequence length."""
    from latentforge.text.packed import META, PackedData

    if data is None or not (data / META).is_file():
        return None
    return PackedData(data).meta.sequence_length


@contextmanager
def held(run: "RunContext") -> Iterator[None]:
    """Keeps other trainers from the run, and sweeps what one that died was writing.

    Raises:
        TrainerError: another trainer has it.
    """
    from latentforge.core.files import sweep
    from latentforge.trainer.run.lock import RunLock

    lock = RunLock(run.folder)
    try:
        folders = [run.folder, *(p for p in run.folder.rglob("*") if p.is_dir())]
        for folder in (*folders, run.settings.checkpoints_dir / run.name):
            # Nobody else writes here now, whatever machine the dead one was on.
            sweep(folder, left_after=_LEFT_AFTER)
        yield
    finally:
        lock.release()


@contextmanager
def _last_words(run: "RunContext") -> Iterator[None]:
    """Leaves in the status why a run failed or stopped, once it had begun."""
    from latentforge.trainer.run.sinks.live import write_status
    from latentforge.trainer.run.status import STARTING

    try:
        yield
    except BaseException as error:
        if run.status.stage != STARTING:
            run.status.error = str(error) or type(error).__name__
            write_status(run.folder, run.status)
        raise


@contextmanager
def _tracked(run: "RunContext") -> "Iterator[RunContext]":
    """The run with the chosen tracker among its sinks.

    Raises:
        TrainerError: the tracker is not installed, or cannot begin.
    """
    from latentforge.trainer.run.sinks.tracker import tracked

    settings, config = run.settings, run.recipe.model_dump(mode="json")
    tracker, project = settings.trainer_tracker, settings.trainer_tracker_project
    with tracked(tracker, project, run.name, run.folder, config) as sinks:
        yield replace(run, sinks=(*run.sinks, *sinks))
