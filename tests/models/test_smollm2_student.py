"""The shipped drafter is what its card says, and small."""

import json
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from latentforge.core.checkpoint_files import verify_checkpoint
from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.results import Result
from latentforge.drafter.drafter import Drafter, DraftRule
from latentforge.snapshots.snapshot import load_snapshot
from models.make_drafter import measured

FOLDER = Path(__file__).resolve().parents[2] / "models" / "smollm2-student"
CARD = FOLDER / "README.md"


def test_it_is_small_and_whole_and_its_card_has_every_figure() -> None:
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()) <= 25e6
    (checkpoint,) = list_checkpoints(FOLDER)
    manifest = verify_checkpoint(checkpoint)
    weights = load_file(checkpoint / "student" / "model.safetensors").values()
    assert {weight.dtype for weight in weights if weight.is_floating_point()} == {torch.bfloat16}
    card = CARD.read_text(encoding="utf-8")
    assert f"`{checkpoint.name}`" in card
    assert manifest.chunk_size == 8
    for figure in ("mean_accepted", "speed_1", "speed_8", "draft_cost", "identical"):
        assert f"| `{figure}` |" in card
    for page in (CARD, checkpoint / "README.md"):
        front = str(ModelCard(page.read_text(encoding="utf-8")).data)
        assert "license: apache-2.0" in front


def test_it_drafts_what_it_has_seen_and_what_repeats() -> None:
    (checkpoint,) = list_checkpoints(FOLDER)
    snapshot = load_snapshot(checkpoint, torch.device("cpu"))
    drafter = Drafter(snapshot.decoding, DraftRule(max_tokens=4, least_confidence=0.0, drafts_from="student"))
    texts = {
        "import numpy as": " np",
        "def __init__(self, name):\n    self.name": " = name\n",
        "The cat sat on the mat. The cat sat on": " the mat. The",
    }
    drafts = drafter.draft([snapshot.encode(text) for text in texts])
    for draft, wanted in zip(drafts, texts.values(), strict=True):
        assert snapshot.decode(draft).startswith(wanted)


def test_the_cards_figures_are_those_of_the_benchmark(tmp_path: Path) -> None:
    results = [
        Result(id="mean_accepted", value=2.3456, unit="tokens", low=2.1, high=2.5),
        Result(id="speed_1", value=50.0, unit="tokens/s", baseline="alone", baseline_value=25.0, ratio=2.0),
    ]
    found = {
        "command": "python -m benchmarks.drafter",
        "device": "a CPU",
        "date": "2026-11-29T03:00:00+00:00",
        "results": [result.model_dump() for result in results],
    }
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    text = measured(path)
    assert text.startswith("## Measured\n\n`python -m benchmarks.drafter`, a CPU, 2026-11-29;")
    assert "| `mean_accepted` | 2.35 | tokens |  | 2.1 – 2.5 |" in text
    assert "| `speed_1` | 50 | tokens/s | 2.00 × alone |  |" in text
