"""What a student has of a start from SmolLM2: the recipe for it, run as a whole, and the benchmark of what it saves."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.trainer.__main__ import TrainerBenchResults
from benchmarks.trainer.english import write_docstrings
from benchmarks.trainer.pretrained import LAYERS
from latentforge.core.checkpoints import list_checkpoints
from latentforge.model.causal_lm import open_causal_lm
from latentforge.model.principal_components import principal_components
from latentforge.snapshots.snapshot import load_snapshot
from latentforge.trainer.config.recipe import load_recipe, parse_override
from latentforge.trainer.config.settings import TrainerSettings
from tools.demo.settings import ROOT

pytestmark = [pytest.mark.smollm2, pytest.mark.timeout(600)]

MODEL = ROOT / "models" / "cache" / "smollm2"
RECIPES = TrainerSettings().recipes_dir


def test_the_recipe_takes_tables_and_on_request_the_layers() -> None:
    recipe = load_recipe("smollm2", RECIPES)
    assert recipe.student_config(16, 0, recipe.autoencoder_config(49_152, 16)).num_layers == 4
    comment = " ".join(re.findall(r"^#   (--set .*)$", (RECIPES / "smollm2.toml").read_text(), re.MULTILINE))
    asked = dict(parse_override(part) for part in shlex.split(comment) if part != "--set")
    # What the command in its comment changes is what was measured.
    assert asked == LAYERS
    recipe = load_recipe("smollm2", RECIPES, asked)
    config = recipe.student_config(16, 0, recipe.autoencoder_config(49_152, 16))
    assert (config.num_layers, config.hidden_size, config.qk_norm) == (30, 576, False)


def run_of(recipe: str, tmp_path: Path, *sets: str) -> Path:
    """Trains a recipe's student on little text, without a teacher; gives its newest checkpoint."""
    data = tmp_path / "text.jsonl"
    write_docstrings(data, "held-out")
    environment = os.environ | {
        "RUNS_DIR": str(tmp_path / "runs"),
        "CHECKPOINTS_DIR": str(tmp_path / "checkpoints"),
        "TOKENIZER_PATH": str(MODEL),
    }
    few = ["student.weights.kd=0", "data.sequence_length=64", "student.validation_sequences=2", "student.samples=0"]
    command = [sys.executable, "-m", "latentforge.trainer", "run", "--recipe", recipe, "--data", str(data)]
    command += ["--targets", "text", *(part for value in [*few, *sets] for part in ("--set", value))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return list_checkpoints(tmp_path / "checkpoints" / recipe)[-1]


def test_a_whole_run_starts_from_it_and_ends_with_what_inference_loads(tmp_path: Path) -> None:
    sets = ["autoencoder.optim.steps=3", "student.optim.steps=6", "student.validate_every=3"]
    newest = run_of("smollm2", tmp_path, *sets)
    curve = json.loads((tmp_path / "runs" / "smollm2" / "student.json").read_text())["curve"]
    assert curve[-1]["ce"] < curve[0]["ce"]
    snapshot = load_snapshot(newest, torch.device("cpu"))
    assert snapshot.manifest.step == 6
    # Six steps hardly move a table: it is still the original's, in fewer dimensions.
    theirs = principal_components(open_causal_lm(str(MODEL)).inputs(), 64).coordinates
    ours = snapshot.model.student.embedding.weight
    assert torch.nn.functional.cosine_similarity(ours, theirs).mean() > 0.9


def test_a_split_student_contains_its_teacher(tmp_path: Path) -> None:
    sets = ["student.optim.steps=3", "student.optim.batch_size=2", "student.validate_every=3"]
    snapshot = load_snapshot(run_of("smollm2-split", tmp_path, *sets), torch.device("cpu"))
    ids = torch.tensor(snapshot.tokenizer.encode("The sea covers most of the Earth, and its water is salty.")[:12])
    theirs: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = theirs(torch.cat([torch.tensor([snapshot.model.eos_id]), ids[:-1]])[None]).logits[0].log_softmax(-1)
        found = snapshot.model.logits(ids.view(1, 3, 4)).logits[0].log_softmax(-1)
    # Of each chunk the first token's distribution is the teacher's, but for what the trained bias adds; the others' are
    # of stand-ins that have hardly learned.
    first = (found[:, 0].exp() - wanted[::4].exp()).abs().sum(-1) / 2
    others = (found[:, 1:].exp() - wanted.view(3, 4, -1)[:, 1:].exp()).abs().sum(-1) / 2
    assert first.max() < 0.05
    assert others.mean() > 0.3


def test_a_quick_look_writes_the_curves_down(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.trainer", "--quick", "--only", "pretrained", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (path,) = tmp_path.glob("bench_trainer_*.json")
    found = TrainerBenchResults.read(path)
    curves = found.measured["pretrained"]["curves"]
    assert {name: [point["tokens"] for point in curve] for name, curve in curves.items()} == {
        "scratch": [0, 128],
        "tables": [0, 128],
        "layers": [0, 128],
        "token_level": [0],
    }
    last = {name: curve[-1]["ce"] for name, curve in curves.items()}
    # Two steps say little, but the original knows English.
    assert last["token_level"] < min(last["scratch"], last["tables"], last["layers"]) - 1
    assert found.by_id["pretrained"].value == last["scratch"] - min(last["tables"], last["layers"])
    assert found.by_id["pretrained_layers"].value == last["scratch"] - last["layers"]
