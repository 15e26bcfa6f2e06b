"""The shipped student is what its card says, and what `make infer` uses while nothing is published."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from latentforge.core.checkpoint_files import read_manifest, verify_checkpoint
from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.manifest import MANIFEST
from latentforge.model.chunk_decoder.split import SplitDecoder
from latentforge.model.golden import check_golden
from latentforge.model.io import load_autoencoder, load_student
from latentforge.model.latent_model import LatentModel
from latentforge.snapshots.snapshot import load_snapshot
from latentforge.trainer.data.corpus import source_files, stdlib_root
from models.shipping import sections_by_hand, store_in_bfloat16

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "models" / "stdlib-student"
CARD = FOLDER / "README.md"


def test_it_is_small_and_whole_and_its_card_has_every_figure() -> None:
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()) <= 25e6
    (checkpoint,) = list_checkpoints(FOLDER)
    manifest = verify_checkpoint(checkpoint)
    weights = load_file(checkpoint / "student" / "model.safetensors").values()
    assert {weight.dtype for weight in weights if weight.is_floating_point()} == {torch.bfloat16}
    card = CARD.read_text()
    assert f"`{checkpoint.name}`" in card
    assert manifest.chunk_size == 8
    for figure in ("nats_per_token", "bits_per_byte", "kl_to_teacher", "calibration_error", "brier_lm", "ae_noisy"):
        assert f"| `{figure}` |" in card
    for setting in ("t1", "t07", "greedy"):
        for figure in ("teacher_nats", "distinct_3", "repetition", "mean_length"):
            assert f"| `gen_{setting}_{figure}` |" in card


def zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.zero_()


def swap_rows(table: Tensor) -> None:
    """Of "ast" and of the blanks before a line."""
    table[[277, 262]] = table[[262, 277]]


def _split_decoder(model: LatentModel) -> SplitDecoder:
    decoder = model.student.chunk_decoder
    assert isinstance(decoder, SplitDecoder)
    return decoder


SPOILS: dict[str, Callable[[LatentModel], object]] = {
    "embeddings zeroed": lambda model: model.student.embedding.weight.zero_(),
    "backbone zeroed": lambda model: zero(model.student.backbone or nn.Identity()),
    "text input to the backbone zeroed": lambda model: zero(model.student.input_map),
    "chunk decoder zeroed": lambda model: zero(model.student.chunk_decoder or nn.Identity()),
    "induction zeroed": lambda model: zero(model.student.induction or nn.Identity()),
    "steering zeroed": lambda model: zero(_split_decoder(model).steer),
    "stand-ins zeroed": lambda model: zero(_split_decoder(model).out),
    "bias zeroed": lambda model: model.student.bias.zero_(),
    "bias of the next id": lambda model: model.student.bias.copy_(model.student.bias.roll(1)),
    "bias of one id a little off": lambda model: model.student.bias[277].add_(0.01),
    "two embeddings swapped": lambda model: swap_rows(model.student.embedding.weight),
    "two rows of the output swapped": lambda model: swap_rows(_split_decoder(model).output.weight),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_its_golden_text_tells_it_from_one_that_lacks_a_part(spoil: str) -> None:
    (place,) = list_checkpoints(FOLDER)
    golden = read_manifest(place).golden
    model = LatentModel(load_autoencoder(place / "autoencoder"), load_student(place / "student"))
    check_golden(model, golden)
    with torch.no_grad():
        SPOILS[spoil](model)
    with pytest.raises(ValueError, match="of the golden text"):
        check_golden(model, golden)


def test_its_manifest_can_be_written_anew(tmp_path: Path) -> None:
    out = tmp_path / FOLDER.name
    shutil.copytree(FOLDER, out)
    (place,) = list_checkpoints(out)
    before = json.loads((place / MANIFEST).read_text())
    (place / MANIFEST).write_text(json.dumps(before | {"format_version": 4, "golden": {"prompt": "import os"}}))
    command = [sys.executable, "-m", "models.make_student", "--manifest-only", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = json.loads((place / MANIFEST).read_text())
    golden = load_snapshot(place, torch.device("cpu")).manifest.golden
    assert {name: value for name, value in after.items() if name != "golden"} == {
        name: value for name, value in before.items() if name != "golden"
    }
    # Of another Python's library it would be another text.
    assert len(golden.token_ids) > 200


def test_a_checkpoint_stored_in_half_the_room_is_whole(tmp_path: Path) -> None:
    place = tmp_path / FOLDER.name / list_checkpoints(FOLDER)[-1].name
    shutil.copytree(list_checkpoints(FOLDER)[-1], place)
    path = place / "student" / "model.safetensors"
    save_file({name: value.float() * 1.01 for name, value in load_file(path).items()}, path)
    golden = read_manifest(place).golden.text
    store_in_bfloat16(place, "mit")
    assert {value.dtype for value in load_file(path).values()} == {torch.bfloat16}
    # Its manifest is of the rounded weights.
    assert verify_checkpoint(place).golden.text == golden
    load_snapshot(place, torch.device("cpu"))


def test_its_cards_begin_with_what_the_hub_reads() -> None:
    (checkpoint,) = list_checkpoints(FOLDER)
    for card in (CARD, checkpoint / "README.md"):
        front = str(ModelCard(card.read_text(encoding="utf-8")).data)
        assert "license: mit" in front
        assert "library_name: latentforge" in front


def test_a_student_made_anew_keeps_what_the_card_says_besides() -> None:
    kept = sections_by_hand(CARD.read_text(encoding="utf-8"))
    assert kept.startswith("## What it is\n")
    assert kept.rstrip().endswith("keeps this\nsection.")
    assert sections_by_hand("# a card\n\nmade by hand\n\n## Measured\n\n1\n") == ""


@pytest.mark.slow
def test_it_predicts_held_out_code_about_as_well_as_its_card_says() -> None:
    snapshot = load_snapshot(list_checkpoints(FOLDER)[-1], torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "stdlib-teacher")
    said = float(re.findall(r"`nats_per_token` \| ([\d.]+)", CARD.read_text())[0])
    texts = [f.text for f in source_files(stdlib_root(), "held-out") if len(f.text) > 10_000][:6]
    losses = []
    with torch.inference_mode():
        for text in texts:
            tokens = torch.tensor(tokenizer.encode(text, add_special_tokens=False)[:1024]).view(1, -1, 8)
            logits = snapshot.model.logits(tokens).logits
            losses.append(float(cross_entropy(logits.flatten(0, 2), tokens.flatten())))
    # Six files, and another Python's differ a little.
    assert sum(losses) / len(losses) == pytest.approx(said, abs=1.0)


@pytest.mark.slow
def test_make_infer_uses_it_while_there_is_no_checkpoint(tmp_path: Path) -> None:
    # An empty FALLBACK_RUN would be the caller's choice to have none.
    environment = {name: value for name, value in os.environ.items() if name != "FALLBACK_RUN"}
    done = subprocess.run(
        # -o: the environment is as it is.
        ["make", "--no-print-directory", "-o", ".venv/.ready", "infer", "PROMPT=import os", "MAX_TOKENS=16", "SEED=1"],
        cwd=ROOT,
        env=environment | {"CHECKPOINTS_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"[stdlib-student/{list_checkpoints(FOLDER)[-1].name}, 16 tokens in 2 latent steps" in done.stdout


@pytest.mark.slow
def test_it_can_be_measured_anew_without_training(tmp_path: Path) -> None:
    out = tmp_path / FOLDER.name
    shutil.copytree(FOLDER, out)
    before = CARD.read_text()
    options = "--no-teacher --sequences 2 --brier-positions 0 --prompts 0"
    folders = ["--out", str(out), "--work", str(tmp_path / "work")]
    command = [sys.executable, "-m", "models.make_student", "--measure-only", *folders, "--evaluation", options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    about, measured = (out / "README.md").read_text().split("## Measured")
    assert about == before.split("## Measured")[0]
    header = re.compile(r"^\| figure \|.*", re.MULTILINE)
    assert (
        header.findall(measured)
        == header.findall(before)
        == ["| figure | standard library | networkx, jinja2, anyio | unit |"]
    )
    assert re.search(r"`nats_per_token` \| [\d.]+ \([\d.]+ – [\d.]+\) \| [\d.]+ \([\d.]+ – [\d.]+\) \|", measured)
    assert "`nats_per_token_k7`" in measured
    assert "brier_lm" not in measured
    assert [place.name for place in list_checkpoints(out)] == [place.name for place in list_checkpoints(FOLDER)]
