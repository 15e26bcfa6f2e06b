"""The comparison of worth: what is trained and chosen on what, and what goes on after a death.

The jobs are real processes of a trainer that leaves behind what a trainer does, without learning anything.
"""

import itertools
import sys
from pathlib import Path

import pytest
from rich.console import Console

from experiments import commands
from experiments.experiment import Experiment
from experiments.mixture import APART, CHOICE, write_mixture
from experiments.scales import HELD_OUT, ScaleName
from experiments.worth import choice_nats, choose_rates, ngram_job, train_worth
from experiments.worth_plan import WORTH_SCALES, architectures, budgets_up_to, chosen, run_of, trials
from latentforge.trainer.config.recipe import load_recipe, parse_override
from tools.processes import ChildError

# Nats/token by text and learning rate: the better a rate is on what is reported, the worse on what is there to choose.
TRAINER = f"""#!{sys.executable}
import json, os, pathlib, sys
args = sys.argv[1:]
root = pathlib.Path(os.environ["RUNS_DIR"]).parent
with open(root / "asked.txt", "a") as asked:
    asked.write(" ".join(args) + chr(10))
def option(name):
    return args[args.index(name) + 1]
if args[0] == "data":
    out = pathlib.Path(option("--out"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps({{"text": out.name + str(i)}}) + chr(10) for i in range(100)))
elif args[0] == "pack":
    pathlib.Path(option("--out")).mkdir(parents=True)
elif args[0] == "train":
    run = root / "runs" / option("--run")
    if os.environ.get("DIES") == option("--run"):
        sys.exit(1)
    result = run / ("autoencoder/evaluation.json" if args[1] == "autoencoder" else args[1] + ".json")
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text("{{}}")
else:
    out = pathlib.Path(option("--out"))
    rate = float(out.name.split("rate")[1].split("-")[0])
    nats = 4 - rate if out.parent.name == "choice" else 4 + rate
    out.mkdir(parents=True)
    about = {{"format_version": 2, "name": "eval", "command": "", "commit": "", "device": "", "date": "", "seed": 0}}
    results = [{{"id": "nats_per_token", "value": nats, "unit": "nats/token"}}]
    (out / "eval_1.json").write_text(json.dumps({{**about, "results": results}}))
"""
SCALE = WORTH_SCALES[ScaleName.smoke]
COMPARED = [a for a in architectures(SCALE) if a.group in ("gru", "factored")]


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    trainer = tmp_path / "trainer"
    trainer.write_text(TRAINER)
    trainer.chmod(0o755)
    monkeypatch.setattr(commands, "_trainer", lambda: str(trainer))
    (tmp_path / "work").mkdir()
    return Experiment(ScaleName.smoke, tmp_path / "work", 8, Console(quiet=True), scale=SCALE.lab)


def asked(experiment: Experiment, what: str) -> list[list[str]]:
    lines = (experiment.places.root / "asked.txt").read_text().splitlines()
    return [line.split() for line in lines if line.startswith(what)]


def test_nothing_is_chosen_on_what_is_reported(experiment: Experiment) -> None:
    factors = choose_rates(experiment, SCALE, COMPARED)
    of_gru = trials(SCALE, COMPARED[0])
    found = {factor: choice_nats(experiment.places, run) for factor, run in of_gru.items()}
    assert found == pytest.approx({factor: 4 - factor * SCALE.lab.learning_rate for factor in SCALE.factors})
    # Of the two rates, the larger is better on the text to choose on, the smaller on what is reported.
    assert factors == dict.fromkeys(COMPARED, 2.0)
    places = experiment.places
    evaluated = asked(experiment, "evaluate")
    assert len(evaluated) == len(COMPARED) * len(SCALE.factors)
    assert {command[2] for command in evaluated} == {str(places.packed("demo", CHOICE))}

    train_worth(experiment, SCALE, factors, SCALE.budgets)
    reported = asked(experiment, "evaluate")[len(evaluated) :]
    assert {command[2] for command in reported} == {str(places.packed("demo", text)) for text in HELD_OUT}
    rates = {part for command in reported for part in command[1].split("-") if part.startswith("rate")}
    assert rates == {f"rate{2 * SCALE.lab.learning_rate:g}"}
    assert len(reported) == len(COMPARED) * len(SCALE.budgets) * len(HELD_OUT)
    # Nor is anything trained, validated or counted on another text than this.
    data = {(c[c.index("--data") + 1], c[c.index("--held-out") + 1]) for c in asked(experiment, "train")}
    assert data == {(str(places.packed("demo", "train")), str(places.packed("demo", "stdlib")))}
    packed = {Path(c[-1]).name: Path(c[1]).stem for c in asked(experiment, "pack")}
    assert packed == {
        "demo-train": "mixture-train",
        "demo-choice": "choice",
        "demo-stdlib": "stdlib",
        "demo-packages": "packages",
    }


def test_after_a_death_only_the_rest_is_done(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = trials(SCALE, COMPARED[0])[2.0].run
    # One after another: what else is running when one dies would be stopped and begun again.
    experiment.at_once = 1
    monkeypatch.setenv("DIES", dying)
    with pytest.raises(ChildError, match="exit code 1"):
        choose_rates(experiment, SCALE, COMPARED)
    before = asked(experiment, "")
    assert dying in before[-1]
    monkeypatch.delenv("DIES")
    choose_rates(experiment, SCALE, COMPARED)
    everything = [" ".join(command) for command in asked(experiment, "")]
    assert everything[len(before)] == everything[len(before) - 1]
    assert len(everything) == len(set(everything)) + 1
    # It is all done now.
    choose_rates(experiment, SCALE, COMPARED)
    assert len(asked(experiment, "")) == len(everything)


def test_every_document_is_trained_on_or_kept_apart(tmp_path: Path) -> None:
    lines = [f"{number}\n".encode() for number in range(100, 250)]
    one, other, train, choice = (tmp_path / name for name in ("one", "other", "train", "choice"))
    one.write_bytes(b"".join(lines[:70]))
    other.write_bytes(b"".join(lines[70:]))
    write_mixture([one, other], train, choice)
    apart = lines[APART - 1 :: APART]
    assert choice.read_bytes() == b"".join(apart)
    assert train.read_bytes() == b"".join(line for line in lines if line not in apart)
    write_mixture([one, other], train, choice, max_bytes=4 * 50 + 3)
    assert choice.read_bytes() == b"".join(apart[:2])
    assert len(train.read_bytes()) == 4 * 48


def values(command: list[str]) -> dict[str, str]:
    """A recipe's values in a command."""
    return dict(value.split("=", 1) for name, value in itertools.pairwise(command) if name == "--set")


@pytest.mark.parametrize("name", WORTH_SCALES)
def test_architectures_differ_in_what_they_are_and_runs_in_rate_and_budget(name: ScaleName, tmp_path: Path) -> None:
    scale, places = WORTH_SCALES[name], commands.Places(tmp_path)
    compared = architectures(scale)
    runs = [run_of(scale, a, budget, f) for a in compared for budget in scale.budgets for f in scale.factors]
    assert len({run.run for run in runs}) == len(runs)
    for run in runs:
        command = commands.student_job(places, scale.lab, run).command
        found = values(command)
        steps = int(found["student.optim.steps"])
        assert steps * scale.lab.batch_size * scale.lab.sequence_length == run.tokens
        assert int(found["student.optim.batch_size"]) == scale.lab.batch_size
        assert found["teacher.targets"] == "text"
        assert command[-2:] == ["--objective", "chunk-ce"] if run.kind == "student" else ["--kd-w", "0"]
        # What the objective decides, and the values then change.
        recipe = load_recipe(
            str(commands.RECIPE),
            tmp_path,
            {"student.objective": "chunk-ce"} | dict(parse_override(f"{n}={v}") for n, v in found.items()),
        )
        assert recipe.student.weights.model_dump() == dict.fromkeys(recipe.student.weights.model_dump(), 0.0) | {
            "ce": 1
        }
        assert recipe.student.optim.lr in [f * scale.lab.learning_rate for f in scale.factors]
        if run.group in ("recurrent", "gru"):
            model = recipe.student_config(1, 0, recipe.autoencoder_config(4096, 1))
            assert (model.chunk_decoder.kind, model.logit_features.kind) == ("recurrent", "none")
            assert (model.num_layers == 0) == (run.group == "gru")
            assert model.chunk_decoder.width == (run.size.width if run.group == "gru" else scale.gru_widths[0])
            assert model.induction.context
        if run.group == "factored":
            token_level = recipe.token_level_config(4096, 1, 0)
            assert (token_level.embed_size, token_level.output_rank) == (128, 128)


def test_a_budget_that_is_none_is_refused() -> None:
    scale = WORTH_SCALES[ScaleName.cpu]
    assert list(budgets_up_to(scale, 16)) == [1, 4, 16]
    assert list(budgets_up_to(scale, None)) == [1, 4, 16, 64]
    assert scale.trial == 4
    with pytest.raises(ValueError, match="5 is no budget of this scale; give one of 1, 4, 16, 64"):
        budgets_up_to(scale, 5)
    assert scale.budgets[-1] * scale.unit > 15_000_000


def test_groups_and_single_architectures_can_be_chosen() -> None:
    compared = architectures(WORTH_SCALES[ScaleName.cpu])
    assert chosen(compared, None) == compared
    found = chosen(compared, ["gru", "recurrent-k8-4x256", "factored-1x64"])
    assert [(a.group, a.k, str(a.size)) for a in found] == [
        ("recurrent", 8, "4x256"),
        ("gru", 8, "0x256"),
        ("gru", 8, "0x384"),
        ("factored", 1, "1x64"),
    ]
    with pytest.raises(ValueError, match=r"no architecture or group 'lstm'; there are factored, factored-1x128, "):
        chosen(compared, ["gru", "lstm"])


def test_counting_reads_what_a_model_of_the_budget_reads(tmp_path: Path) -> None:
    scale, places = WORTH_SCALES[ScaleName.cpu], commands.Places(tmp_path)
    command = ngram_job(places, scale, 16, "packages").command
    assert command[command.index("--tokens") + 1] == str(16 * scale.unit)
    assert command[command.index("ngram") + 1 :][:2] == [str(places.packed("demo", n)) for n in ("train", "packages")]
