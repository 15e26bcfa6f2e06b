"""The comparison that says what a student is worth: beside a GRU, token-level models and counting, at several budgets.

Every architecture gets the learning rate that is best for it at the trial budget, on text that is neither trained nor
reported on: only its runs at that rate are evaluated on what is reported.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from experiments.commands import CommandJob, Places
from experiments.experiment import Experiment
from experiments.measured import read_evaluation
from experiments.mixture import CHOICE
from experiments.plan import Model
from experiments.results import ModelResult, ModelResults
from experiments.scales import HELD_OUT
from experiments.worth_measured import WorthRun
from experiments.worth_plan import RATE, WorthScale, run_of, trials
from latentforge.trainer.results import StudentResult


def choose_rates(experiment: Experiment, scale: WorthScale, compared: Sequence[Model]) -> dict[Model, float]:
    """Trains every architecture at all rates, and gives the best factor of each."""
    tried = {architecture: trials(scale, architecture) for architecture in compared}
    experiment.make([run for runs in tried.values() for run in runs.values()], texts=(CHOICE,))
    return {architecture: best_factor(experiment.places, runs) for architecture, runs in tried.items()}


def best_factor(places: Places, runs: Mapping[float, Model]) -> float:
    """The factor whose run has the fewest nats/token on the text that is there for it."""
    return min(runs, key=lambda factor: choice_nats(places, runs[factor]))


def choice_nats(places: Places, run: Model) -> float:
    """Nats/token of a run on the text that settings are chosen on."""
    value = read_evaluation(places.evaluated(run, CHOICE))["nats_per_token"].value
    assert value is not None
    return value


def train_worth(
    experiment: Experiment, scale: WorthScale, factors: Mapping[Model, float], budgets: Sequence[int]
) -> dict[Model, list[Model]]:
    """Trains every architecture at its learning rate at all budgets, and evaluates it on what is reported.

    Returns:
        The runs of each, by budget.
    """
    runs = {a: [run_of(scale, a, budget, factor) for budget in budgets] for a, factor in factors.items()}
    experiment.make([run for of in runs.values() for run in of], texts=HELD_OUT)
    return runs


def measure_worth(
    experiment: Experiment, scale: WorthScale, runs: Mapping[Model, Sequence[Model]], budgets: Sequence[int]
) -> list[WorthRun]:
    """What came out, every architecture timed once, all in turns."""
    # How long a token takes does not depend on what a model has learnt.
    timed = experiment.measured([of[-1] for of in runs.values()], timed=True)
    places, found = experiment.places, []
    for (architecture, of), last in zip(runs.items(), timed, strict=True):
        tried = trials(scale, architecture).values()
        nats = {f"{run.changes[RATE]:g}": choice_nats(places, run) for run in tried}
        for budget, measured in zip(budgets, experiment.measured(of, timed=False), strict=True):
            seconds = StudentResult.read(places.runs / measured.model.run / f"{architecture.kind}.json").seconds
            measured = replace(measured, speed=last.speed, autoencoder_flops=last.autoencoder_flops)
            rate = measured.model.changes[RATE]
            found.append(WorthRun(measured, architecture.group, budget, rate, nats, seconds))
    return found


def count_ngrams(experiment: Experiment, scale: WorthScale, budgets: Sequence[int]) -> list[ModelResult]:
    """What counting gives of the text that the models read: nats/token without and with a cache, by budget and text."""
    places = experiment.places
    jobs = [ngram_job(places, scale, budget, text) for text in HELD_OUT for budget in budgets]
    experiment.run(jobs, "n-grams")
    return [result for text in HELD_OUT for budget in budgets for result in _ngram_results(places, budget, text)]


def _ngram_results(places: Places, budget: int, text: str) -> Iterator[ModelResult]:
    suffix = "" if text == HELD_OUT[0] else f"_{text}"
    for result in ModelResults.read(max(ngrams_counted(places, budget, text).glob("ngram_*.json"))).results:
        name = result.id.removesuffix("_nats_per_token")
        yield result.model_copy(update={"id": f"{name}_x{budget}{suffix}"})


def ngram_job(places: Places, scale: WorthScale, budget: int, text: str) -> CommandJob:
    """Counts the first tokens that a model of seed 0 reads."""
    tokens, out = budget * scale.unit, ngrams_counted(places, budget, text)
    command = [sys.executable, "-m", "experiments", "ngram"]
    command += [str(places.packed("demo", "train")), str(places.packed("demo", text)), "--tokens", str(tokens)]
    command += ["--sequences", str(scale.lab.evaluation["--sequences"]), "--results", str(out)]
    return CommandJob(f"ngram x{budget} on {text}", command, out, tokens)


def ngrams_counted(places: Places, budget: int, text: str) -> Path:
    """The folder of what counting gave on a held-out text."""
    return places.root / "evaluations" / text / f"ngram-x{budget}"
