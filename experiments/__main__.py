"""``python -m experiments``: trains, measures, and writes figures and charts."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments.choice import CHOICE_CHART, choices, draw_choices
from experiments.codes import code_plans, code_results, exact_tokens
from experiments.comparisons import (
    COMPARISONS,
    Comparison,
    autoencoder_models,
    equal_time_models,
    objective_models,
    of_groups,
)
from experiments.experiment import Experiment
from experiments.figures import (
    draft_results,
    equal_time_results,
    latent_results,
    objective_results,
    pareto_results,
    speed_results,
    token_results,
)
from experiments.fresh import speed_models
from experiments.jobs import StaleError
from experiments.ngram_control import ngram_results
from experiments.pace import pace_results
from experiments.pareto import pareto_models, seed_models
from experiments.plan import AutoencoderPlan
from experiments.published import RESULTS, WORTH, draw_measured, draw_runs, redraw
from experiments.report import autoencoders_table, models_table, print_results, worth_table, write_models
from experiments.scales import ScaleName
from experiments.worth import choose_rates, count_ngrams, measure_worth, train_worth
from experiments.worth_figures import worth_results
from experiments.worth_plan import WORTH_SCALES, architectures, budgets_up_to, chosen
from latentforge.core.command_line import errors_reported
from latentforge.text.errors import TextError
from latentforge.text.packed import PackedData
from tools.processes import ChildError, StoppedError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Experiments, from data to figures; resumable.")
ScaleOption = Annotated[ScaleName, typer.Option("--scale", help="How large.")]
FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="Where everything is kept.", show_default="runs/experiments-SCALE")
]
AtOnceOption = Annotated[
    int, typer.Option("--at-once", min=1, help="Jobs side by side, one thread each.", show_default="the cores")
]
ResultsOption = Annotated[Path, typer.Option("--results", help="Where the results file goes.")]
SeedsOption = Annotated[
    int | None, typer.Option("--seeds", min=1, help="How many seeds at most.", show_default="the scale's")
]
PublishOption = Annotated[
    Path | None, typer.Option("--publish", help="Also write results.json and the charts to this folder.")
]
_RESULTS = {
    Comparison.objectives: objective_results,
    Comparison.equal_time: equal_time_results,
    Comparison.drafts: draft_results,
    Comparison.latents: latent_results,
    Comparison.tokens: token_results,
}
# Printed beside what they would be taken for.
WITHDRAWN = (
    "pareto_*, decode_* and fast_k8 are withdrawn as claims: without its transformer a student is as good, and a GRU "
    "with the same heads better; docs/results/students says what is missing"
)
_CORES = len(os.sched_getaffinity(0))


def _console() -> Console:
    """A file takes wide tables."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else 200)


def _publish(results: Path, folder: Path) -> None:
    """Copies results to a folder of published ones, and draws the charts there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_bytes(results.read_bytes())
    redraw(folder)


@app.command()
def pareto(
    scale: ScaleOption = ScaleName.cpu,
    folder: FolderOption = None,
    at_once: AtOnceOption = _CORES,
    results: ResultsOption = Path("results"),
    publish: PublishOption = None,
) -> None:
    """Latent students beside token-level ones: quality against speed and against training."""
    console = _console()
    experiment = Experiment(scale, folder, at_once, console)
    models = [*pareto_models(experiment.scale), *seed_models(experiment.scale)]
    experiment.make(models)
    measured = experiment.measured(models, timed=True)
    found = pareto_results(measured)
    path = write_models(results, "pareto", found, [m.record() for m in measured], scale)
    charts = path.with_suffix(".png"), path.with_name(f"{path.stem}_panels.png")
    draw_measured(measured, *charts)
    console.print(models_table(measured))
    print_results(console, found)
    console.print(WITHDRAWN, highlight=False, soft_wrap=True)
    for made in (path, *charts):
        console.print(str(made), highlight=False)
    if publish is not None:
        _publish(path, publish)


@app.command("redraw")
def redraw_command(
    folder: Annotated[Path, typer.Argument(help="With results.json of pareto or worth, and perhaps controls.json.")],
) -> None:
    """Draws a published folder's charts anew from its JSON, without training anything."""
    for path in redraw(folder):
        _console().print(str(path), highlight=False)


@app.command()
def speed(
    scale: ScaleOption = ScaleName.cpu,
    results: ResultsOption = Path("results"),
    repeats: Annotated[
        int | None, typer.Option("--repeats", min=1, help="Rounds that count.", show_default="the scale's")
    ] = None,
) -> None:
    """How many times as fast students write as token-level models of their backbone, without training any."""
    console = _console()
    experiment = Experiment(scale, None, 1, console)
    measured = experiment.measured_fresh(speed_models(experiment.scale), repeats)
    found = speed_results(measured)
    print_results(console, found)
    console.print(str(write_models(results, "speed", found, [m.record() for m in measured], scale)), highlight=False)


@app.command()
def pace(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Runs of checkpoints/, token-level students and pretrained models; each beside the first."),
    ],
    new_tokens: Annotated[int, typer.Option("--tokens", min=8, help="That each request writes.")] = 256,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Rounds that count.")] = 9,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of orders, prompts and samples.")] = 0,
    results: ResultsOption = Path("results"),
) -> None:
    """How fast models that are there write, one request at a time and 16 at once, in turns on one thread."""
    console = _console()
    try:
        found = pace_results(folders, new_tokens=new_tokens, repeats=repeats, seed=seed)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="FOLDERS") from None
    print_results(console, found)
    console.print(str(write_models(results, "pace", found, [])), highlight=False)


@app.command()
def choose(
    results: Annotated[Path, typer.Option("--results", help="The folder of published results.")] = Path("docs/results"),
    models: Annotated[Path, typer.Option("--models", help="That of the shipped models.")] = Path("models"),
) -> None:
    """Draws what to serve: quality against speed of teachers, drafts and students, from what is published."""
    chart = results / "choice" / CHOICE_CHART
    draw_choices(choices(results, models), chart)
    _console().print(str(chart), highlight=False)


@app.command()
def compare(
    what: Annotated[Comparison, typer.Argument(help="What is varied.")],
    scale: ScaleOption = ScaleName.cpu,
    folder: FolderOption = None,
    at_once: AtOnceOption = _CORES,
    results: ResultsOption = Path("results"),
    seeds: SeedsOption = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="A group of models; again for more.", show_default="all groups")
    ] = None,
) -> None:
    """Objectives, chunk decoders, latents and more beside each other, K=8, one thing varied at a time."""
    console = _console()
    experiment = Experiment(scale, folder, at_once, console)
    if what is Comparison.equal_time:
        others = [m for m in objective_models(experiment.scale) if m.seed == experiment.scale.seeds[0]]
        experiment.make(others)
        models = equal_time_models(experiment.scale, experiment.rates(others))
    else:
        models = COMPARISONS[what](experiment.scale)
    models = [m for m in models if m.seed in experiment.scale.seeds[:seeds]]
    if only is not None:
        try:
            models = of_groups(models, only)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--only") from None
    experiment.make(models)
    measured = experiment.measured(
        models, timed=what in (Comparison.decoders, Comparison.logit_features, Comparison.induction)
    )
    found = _RESULTS[what](measured) if what in _RESULTS else []
    path = write_models(results, what, found, [m.record() for m in measured], scale)
    console.print(models_table(measured))
    print_results(console, found)
    console.print(str(path), highlight=False)


@app.command()
def autoencoders(
    scale: ScaleOption = ScaleName.cpu,
    folder: FolderOption = None,
    at_once: AtOnceOption = _CORES,
    results: ResultsOption = Path("results"),
) -> None:
    """Autoencoders over K, over D and over their width: what they bring back of held-out text.

    From the posterior's mean, under its noise, and from the latents that a student of each predicts.
    """
    console = _console()
    experiment = Experiment(scale, folder, at_once, console)
    models = autoencoder_models(experiment.scale)
    experiment.make(models)
    found = [
        {"run": m.model.autoencoder_plan.run, "hidden_size": m.model.autoencoder_plan.width}
        | experiment.autoencoder(m.model.autoencoder_plan).model_dump(exclude={"format_version"})
        | {"token_exact_at_student": m.value("ae_at_student"), "student": m.record()}
        for m in experiment.measured(models, timed=False)
    ]
    default = [experiment.autoencoder(AutoencoderPlan("demo", 8))]
    found_results = [
        exact_tokens("ae_clean", "token_exact", default),
        exact_tokens("ae_noisy", "token_exact_noisy", default),
    ]
    path = write_models(results, "autoencoders", found_results, found)
    console.print(autoencoders_table(found))
    print_results(console, found_results)
    console.print(str(path), highlight=False)


@app.command()
def codes(
    scale: ScaleOption = ScaleName.cpu,
    folder: FolderOption = None,
    at_once: AtOnceOption = _CORES,
    results: ResultsOption = Path("results"),
    latent_sizes: Annotated[
        list[int] | None, typer.Option("--latent-size", min=8, help="D; again for more.", show_default="128")
    ] = None,
    seeds: SeedsOption = None,
) -> None:
    """Autoencoders whose tokens start with codes of equal length: what they bring back; no student is trained."""
    console = _console()
    experiment = Experiment(scale, folder, at_once, console)
    plans = code_plans(latent_sizes or [128], experiment.scale.seeds[:seeds])
    experiment.make_autoencoders(plans)
    made = {plan: experiment.autoencoder(plan) for plan in plans}
    found = [asdict(plan) | of.model_dump(exclude={"format_version"}) | {"run": plan.run} for plan, of in made.items()]
    found_results = code_results(made)
    path = write_models(results, "codes", found_results, found, scale)
    console.print(autoencoders_table(found))
    print_results(console, found_results)
    console.print(str(path), highlight=False)


@app.command()
def worth(
    scale: ScaleOption = ScaleName.cpu,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where everything is kept.", show_default="runs/worth-SCALE")
    ] = None,
    at_once: AtOnceOption = _CORES,
    results: ResultsOption = Path("results"),
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="A group, like gru, or one, like recurrent-k8-4x256; again.", show_default="all"),
    ] = None,
    budgets: Annotated[
        int | None,
        typer.Option("--budgets", help="The largest, in units; rates are chosen at the second.", show_default="all"),
    ] = None,
    publish: PublishOption = None,
) -> None:
    """What a student is worth beside a GRU, token-level models and n-grams, from text alone, at several budgets."""
    console = _console()
    plan = WORTH_SCALES[scale]
    experiment = Experiment(scale, folder, at_once, console, kind="worth", scale=plan.lab)
    try:
        compared = chosen(architectures(plan), only)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--only") from None
    try:
        chosen_budgets = budgets_up_to(plan, budgets)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--budgets") from None
    factors = choose_rates(experiment, plan, compared)
    trained = train_worth(experiment, plan, factors, chosen_budgets)
    counted = count_ngrams(experiment, plan, chosen_budgets)
    runs = measure_worth(experiment, plan, trained, chosen_budgets)
    found = [*worth_results(runs), *counted]
    path = write_models(results, WORTH, found, [run.record() for run in runs], scale)
    chart = path.with_suffix(".png")
    draw_runs(runs, found, chart)
    console.print(worth_table(runs))
    print_results(console, found)
    for made in (path, chart):
        console.print(str(made), highlight=False)
    if publish is not None:
        _publish(path, publish)


@app.command()
def ngram(
    data: Annotated[Path, typer.Argument(help="Packed data that students learn from.")],
    held_out: Annotated[Path, typer.Argument(help="Packed data to report on.")],
    order: Annotated[int, typer.Option("--order", min=1, help="Tokens of the longest n-grams.")] = 5,
    cache: Annotated[int, typer.Option("--cache", min=0, help="Tokens that the cache goes by at most.")] = 5,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", min=1, help="Counts what a student of this seed reads first.", show_default="all"),
    ] = None,
    sequences: Annotated[int, typer.Option("--sequences", min=2, help="Of the held-out data, evenly spread.")] = 40,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the data's order and the intervals.")] = 0,
    results: ResultsOption = Path("results"),
) -> None:
    """What counting alone gives: an n-gram model's held-out nats/token, with and without a cache of the text so far."""
    console = _console()
    found = ngram_results(
        PackedData(data),
        PackedData(held_out),
        order=order,
        cache=cache,
        max_tokens=tokens,
        sequences=sequences,
        seed=seed,
        console=console,
    )
    print_results(console, found)
    console.print(str(write_models(results, "ngram", found, [])), highlight=False)


if __name__ == "__main__":
    try:
        with errors_reported(ChildError, StaleError, TextError):
            app()
    except StoppedError as stopped:
        sys.stderr.write("stopped; the same command resumes\n")
        sys.exit(stopped.exit_code)
