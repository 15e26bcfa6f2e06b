"""``--dry-run``: what a run would take, printed; nothing is trained, asked or left behind."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from latentforge.trainer.cli.opening import recipe_of, user_errors
from latentforge.trainer.cli.options import RunOptions
from latentforge.trainer.cli.watch import duration

if TYPE_CHECKING:
    from latentforge.trainer.config.recipe import Recipe
    from latentforge.trainer.training.estimates.dry_run import StageName, StageNeeds

_GIB = 2**30


@user_errors()
def dry_run(options: RunOptions, overrides: Mapping[str, Any], stages: "Sequence[StageName]") -> None:
    """Prints the stages' parameters, memory, speed, time and disk."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from latentforge.core.settings import SettingsError
    from latentforge.trainer.run.device import device_of
    from latentforge.trainer.run.tokenizer import teachers_tokenizer
    from latentforge.trainer.training.estimates.dry_run import TokenizerIds, stage_needs

    settings, recipe = recipe_of(options, overrides)
    data = recipe.data
    if recipe.vocab_size is not None and data.pad_id is not None and data.eos_id is not None:
        # All that models must know; the tokenizer may be on another machine.
        ids = TokenizerIds(recipe.vocab_size, data.pad_id, data.eos_id)
    else:
        tokenizer = teachers_tokenizer(settings, eos_id=data.eos_id, pad_id=data.pad_id, bos=data.bos)
        tokenizer.check_ids()
        ids = TokenizerIds(recipe.vocab_size or tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id)
    try:
        device = device_of(recipe)
    except SettingsError:
        device = None
    console = Console(stderr=True)
    found = []
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("")
        for stage in stages:
            bar.update(task, description=f"dry run of {stage}")
            found.append(stage_needs(recipe, stage, ids, device))
    typer.echo(
        f"dry run of {recipe.name}: ids and the teacher's rows are random, no teacher was asked, nothing is left"
    )
    for needs in found:
        typer.echo("\n".join(_lines(needs, recipe)))


def _lines(needs: "StageNeeds", recipe: "Recipe") -> list[str]:
    parts = ", ".join(f"{name} {count:,}" for name, count in needs.parameters.items())
    memory = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in needs.memory.items())
    tokens = needs.steps * needs.tokens_a_step
    lines = [
        f"{needs.stage}",
        f"  parameters     {sum(needs.parameters.values()):,}, {needs.trainable:,} of them trained: {parts}",
        f"  a step         {needs.tokens_a_step:,} tokens in {needs.parts} parts, {needs.operations / 1e12:.2f} TFLOP",
        f"  all steps      {needs.steps:,}, {tokens:,} tokens, {tokens / needs.trainable:.1f} a trained parameter",
        f"  memory         {sum(needs.memory.values()) / _GIB:.2f} GiB, estimated: {memory}",
    ]
    if needs.step_seconds is None or needs.measured_peak is None:
        lines.append(f"  time           unknown: no step was made, since {needs.why_not}")
    else:
        speed = needs.tokens_a_step / needs.step_seconds
        lines += [
            f"  measured       {needs.measured_peak / _GIB:.2f} GiB at the peak, {speed:,.0f} tokens/s",
            f"  time           {duration(needs.steps * needs.step_seconds)}, without the teacher, data and validation",
        ]
    if needs.stage == "autoencoder":
        lines.append(
            f"  disk           a state {needs.state_bytes / _GIB:.2f} GiB, the model at the end "
            f"{needs.checkpoint_bytes / _GIB:.2f} GiB"
        )
    else:
        from latentforge.trainer.training.publish import publish_steps

        published = len(publish_steps(recipe.student)) if needs.stage == "student" else 1
        lines.append(
            f"  disk           a state {needs.state_bytes / _GIB:.2f} GiB, a checkpoint "
            f"{needs.checkpoint_bytes / _GIB:.2f} GiB, {published} published: "
            f"{published * needs.checkpoint_bytes / _GIB:.1f} GiB if all are kept"
        )
    return lines
