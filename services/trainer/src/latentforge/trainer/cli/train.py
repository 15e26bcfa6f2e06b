"""``trainer train …``: one model each."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from latentforge.trainer.cli.dry_run import dry_run
from latentforge.trainer.cli.opening import forget, opened_run
from latentforge.trainer.cli.options import (
    AccumulationOption,
    Bf16Option,
    DryRunOption,
    InitFromOption,
    KOption,
    LearningOptions,
    MemoryOptions,
    RunOptions,
    StepsOption,
    TeacherOptions,
    begun_from,
    precision,
    with_groups,
)
from latentforge.trainer.config.objectives import OBJECTIVES
from latentforge.trainer.results import ReconstructionFigures, StudentResult

train_app = typer.Typer(no_args_is_help=True, help="Trains one model.")


@train_app.command("autoencoder")
@with_groups
def autoencoder(
    options: RunOptions,
    k: KOption = None,
    d: Annotated[
        int | None, typer.Option("--d", help="Dimensions of a latent, D.", show_default="the recipe's")
    ] = None,
    steps: StepsOption = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", min=0.001, help="Passes over the data, instead of --steps.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Chunks per step.", show_default="the recipe's")
    ] = None,
    gradient_accumulation_steps: AccumulationOption = None,
    bf16: Bf16Option = None,
    dry: DryRunOption = False,
) -> None:
    """Trains the autoencoder into runs/RUN/autoencoder/."""
    from latentforge.trainer.data.prepare import run_data
    from latentforge.trainer.errors import TrainerError
    from latentforge.trainer.training.autoencoder import train_autoencoder
    from latentforge.trainer.training.estimates.disk import check_disks

    if steps is not None and epochs is not None:
        raise typer.BadParameter("give --steps or --epochs, not both", param_hint="--epochs")
    overrides = {
        "chunk_size": k,
        "autoencoder.model.latent_size": d,
        "autoencoder.optim.steps": steps,
        "autoencoder.optim.batch_size": batch_size,
        "autoencoder.optim.gradient_accumulation_steps": gradient_accumulation_steps,
        "precision": precision(bf16),
    }
    if dry:
        dry_run(options, overrides, ["autoencoder"])
        return
    with opened_run(options, overrides) as run:
        if options.fresh:
            forget(run, run.folder / "state" / "autoencoder", run.folder / "autoencoder")
        with run.ranks.main_first():
            train, held_out = run_data(run, options.data, options.held_out)
        if not len(train):
            raise TrainerError(f"{options.data} holds no sequence")
        if epochs is not None:
            # Known only now: the data says how many steps a pass takes.
            recipe = run.recipe.with_autoencoder_epochs(epochs, len(train) * train.meta.sequence_length)
            run = replace(run, recipe=recipe)
        check_disks(run, ["autoencoder"])
        result = train_autoencoder(run, train, held_out)
        if run.ranks.is_main:
            typer.echo(
                f"autoencoder K={result.k} D={result.d}: {result.token_exact:.2%} of held-out tokens and "
                f"{result.chunk_exact:.2%} of chunks exact, {result.token_exact_noisy:.2%} of tokens under "
                f"posterior noise{_untrained(result.untrained)}; {run.folder / 'autoencoder'}"
            )


@train_app.command("student")
@with_groups
def student(
    options: RunOptions,
    teacher: TeacherOptions,
    memory: MemoryOptions,
    learning: LearningOptions,
    ae_checkpoint: Annotated[
        Path | None,
        typer.Option("--ae-checkpoint", help="A trained autoencoder's folder.", show_default="runs/RUN/autoencoder"),
    ] = None,
    init_from: InitFromOption = None,
    objective: Annotated[
        str | None,
        typer.Option(
            "--objective",
            help="; ".join(f"{name}: {o.about}" for name, o in OBJECTIVES.items()),
            show_default="the recipe's",
        ),
    ] = None,
    k: KOption = None,
    d: Annotated[
        int | None, typer.Option("--d", help="Dimensions of a latent, D.", show_default="the autoencoder's")
    ] = None,
    mse_w: Annotated[
        float | None, typer.Option("--mse-w", help="Weight of the latents' MSE.", show_default="the recipe's")
    ] = None,
    energy_w: Annotated[
        float | None, typer.Option("--energy-w", help="Weight of the energy loss.", show_default="the recipe's")
    ] = None,
    head: Annotated[
        str | None, typer.Option("--head", help="deterministic or energy.", show_default="the recipe's")
    ] = None,
    dry: DryRunOption = False,
) -> None:
    """Trains the student against the gateway and publishes checkpoints/RUN/."""
    from latentforge.trainer.data.prepare import run_data
    from latentforge.trainer.training.student import result_file, train_student

    overrides = {
        **teacher.overrides,
        **memory.overrides,
        **learning.overrides,
        "chunk_size": k,
        **begun_from(init_from),
        "student.objective": objective,
        "student.weights.mse": mse_w,
        "student.weights.energy": energy_w,
        "student.model.head": head,
    }
    if dry:
        dry_run(options, overrides, ["student"])
        return
    with opened_run(options, overrides, teacher.gateway) as run:
        if options.fresh:
            checkpoints = run.settings.checkpoints_dir / run.name
            forget(run, run.folder / "state" / "student", result_file(run, "student"), checkpoints)
        with run.ranks.main_first():
            train, held_out = run_data(run, options.data, options.held_out)
        folder = ae_checkpoint or (run.recipe.student.init_checkpoint or run.folder) / "autoencoder"
        result = train_student(run, train, held_out, folder, d, fresh=options.fresh)
        if run.ranks.is_main:
            typer.echo(_line("student", result))


@train_app.command("token-level")
@with_groups
def token_level(
    options: RunOptions,
    teacher: TeacherOptions,
    memory: MemoryOptions,
    learning: LearningOptions,
    dry: DryRunOption = False,
) -> None:
    """Trains the baseline, a student that writes one token a step, into runs/RUN/token-level/.

    It has the backbone of the recipe's student.model (--set student.model.num_layers=2 changes it), the same data,
    teacher, CE and KD.
    """
    from latentforge.trainer.data.prepare import run_data
    from latentforge.trainer.training.student import result_file, train_token_level

    overrides = {**teacher.overrides, **memory.overrides, **learning.overrides}
    if dry:
        dry_run(options, overrides, ["token-level"])
        return
    with opened_run(options, overrides, teacher.gateway) as run:
        if options.fresh:
            places = run.folder / "state" / "token-level", run.folder / "token-level"
            forget(run, *places, result_file(run, "token-level"))
        with run.ranks.main_first():
            train, held_out = run_data(run, options.data, options.held_out)
        result = train_token_level(run, train, held_out, fresh=options.fresh)
        if run.ranks.is_main:
            typer.echo(_line("token-level student", result))


def _untrained(found: ReconstructionFigures | None) -> str:
    if found is None:
        return ""
    return f" (before its first step {found.token_exact:.2%}, under noise {found.token_exact_noisy:.2%})"


def _line(what: str, result: StudentResult) -> str:
    first, last = result.curve[0], result.curve[-1]
    text = "held-out continuations:" if result.targets == "generate" else "held-out"
    terms = f"CE {first.ce:.3f} -> {last.ce:.3f}"
    if first.kd is not None and last.kd is not None:
        terms += f", KD {first.kd:.3f} -> {last.kd:.3f}"
    if first.acceptance is not None and last.acceptance is not None:
        terms += f", acceptance {first.acceptance:.3f} -> {last.acceptance:.3f}"
    teacher = f", teacher {result.teacher.held_out_nll:.3f}" if result.teacher else ""
    return f"{what}: {text} {terms} nats/token (unigram {result.unigram_ce:.3f}{teacher}); {result.checkpoints[-1]}"
