import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from latentforge.core.manifest import TeacherId
from latentforge.model.io import save_pretrained
from latentforge.model.latent_model import LatentModel
from latentforge.model.token_level import TokenLevelModel
from latentforge.text.packed import PackedData
from latentforge.text.packing import pack_jsonl
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.cli.main import app
from latentforge.trainer.data.corpus import source_files, stdlib_root
from latentforge.trainer.results import Evaluation
from latentforge.trainer.training.publish import publish

SMALL = [
    "--sequences",
    "5",
    "--brier-positions",
    "32",
    "--brier-samples",
    "3",
    "--prompts",
    "4",
    "--prompt-tokens",
    "8",
]
SMALL += ["--draft-contexts", "16", "--new-tokens", "10", "--top-k", "4", "--bound-chunks", "16"]
Evaluate = Callable[..., tuple[Result, dict[str, Any]]]


@pytest.fixture
def held_out(tmp_path: Path, corpus: Path, tokenizer: TextTokenizer) -> Path:
    pack_jsonl(corpus, tmp_path / "held", tokenizer, sequence_length=32, chunk_size=4, split="held-out")
    return tmp_path / "held"


@pytest.fixture
def evaluate(tmp_path: Path, tokenizer_folder: Path, known_teacher: Any, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Runs the command and gives what it wrote."""
    environment = {
        "RUNS_DIR": str(tmp_path / "runs"),
        "CHECKPOINTS_DIR": str(tmp_path / "checkpoints"),
        "TOKENIZER_PATH": str(tokenizer_folder),
        "GATEWAY_TARGET": f"127.0.0.1:{known_teacher.port}",
        "NO_COLOR": "1",
        "COLUMNS": "60",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: object) -> tuple[Result, dict[str, Any]]:
        out = tmp_path / "results"
        shutil.rmtree(out, ignore_errors=True)
        result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--out", str(out), *SMALL])
        written = list(out.glob("eval_*.json"))
        return result, Evaluation.read(written[0]).model_dump() if written else {}

    return run


@pytest.fixture
def publish_to(make_run: Any) -> Callable[[Path, LatentModel, int], None]:
    """Publishes a model as a step of the run "run" below a folder of checkpoints."""

    def to(root: Path, model: LatentModel, step: int) -> None:
        run = make_run("run")
        run = replace(run, settings=run.settings.model_copy(update={"checkpoints_dir": root}))
        publish(run, model, TeacherId(backend="known", model="closed-form", revision="1"), step, {}, "def main():")

    return to


def results_of(record: dict[str, Any]) -> dict[str, Any]:
    return {result["id"]: result for result in record["results"]}


GENERATION_IDS = {
    f"{setting}_{what}"
    for setting in ("gen_t1", "gen_t07", "gen_greedy", "reference")
    for what in ("teacher_nats", "distinct_3", "repetition", "mean_length")
}
TEACHER_GENERATION_IDS = {f"teacher_{name}" for name in GENERATION_IDS if name.startswith("gen_")}
WORTH_IDS = {"worth_backbone", "worth_latent", "worth_copy", "worth_window"}
BRIER_IDS = {"brier_lm", "brier_1", "brier_2", "brier_3", "brier_4", "brier_8"}
TEACHER_IDS = {"teacher_nats_per_token", "kl_to_teacher"}
ACCEPTANCE_IDS = {"acceptance", "acceptance_low"}
CHUNK_IDS = {"mean_accepted", "mean_accepted_low", *(f"acceptance_k{k}" for k in range(4))}
DRAFT_IDS = {"draft_mean_accepted", *(f"draft_acceptance_k{k}" for k in range(8))}
RECONSTRUCTION_IDS = {"ae_clean", "ae_noisy", "ae_at_student", "ae_margin", "ae_active_dims", "latent_mse"}
LIKELIHOOD_IDS = {"nats_per_token", "bits_per_byte", "calibration_error"}


def test_a_published_student(
    evaluate: Evaluate, make_latent: Any, held_out: Path, tmp_path: Path, publish_to: Any
) -> None:
    for step in (9, 10):
        publish_to(tmp_path / "checkpoints", make_latent(induction={"context": 2, "size": 8}), step)
    result, record = evaluate("run", held_out)
    assert result.exit_code == 0, result.output
    results = results_of(record)
    positions = {f"nats_per_token_k{k}" for k in range(4)}
    of_drafts = ACCEPTANCE_IDS | CHUNK_IDS | DRAFT_IDS
    others = BRIER_IDS | GENERATION_IDS | TEACHER_GENERATION_IDS | RECONSTRUCTION_IDS
    assert set(results) == LIKELIHOOD_IDS | WORTH_IDS | positions | TEACHER_IDS | of_drafts | others
    assert record["checkpoint"]["id"] == "run/step-00000010"
    assert record["checkpoint"]["kind"] == "student"
    assert record["data"]["tokens"] == 5 * 31
    assert record["options"]["brier_samples"] == 3
    assert record["teacher"] == "closed-form (known, 1)"
    nats = results["nats_per_token"]
    assert nats["low"] < nats["value"] < nats["high"]
    assert nats["ratio"] == pytest.approx(results["teacher_nats_per_token"]["value"] / nats["value"])
    assert results["kl_to_teacher"]["value"] > 0
    assert results["kl_to_teacher"]["unit"] == "nats/token, at least"
    assert "with MAX_TOP_K=260 it gives kl_full" in " ".join(result.output.split())
    for part in WORTH_IDS:
        worth = results[part]
        assert worth["unit"] == "nats/token"
        assert worth["low"] < worth["value"] < worth["high"]
    for setting in ("t1", "t07", "greedy"):
        ours, teachers = (results[f"{who}gen_{setting}_repetition"] for who in ("", "teacher_"))
        assert ours["baseline"] == teachers["baseline"] == "reference"
        assert ours["baseline_value"] == teachers["baseline_value"] == results["reference_repetition"]["value"]
        assert ours["low"] <= ours["value"] <= ours["high"]
    assert [results[share]["baseline"] for share in ("ae_clean", "ae_noisy")] == ["untrained", "untrained"]
    for row in results.values():
        assert row["id"] in result.output
        assert f"{row['value']:.4f}" in result.output or row["value"] >= 100
    for name in ("newest", tmp_path / "checkpoints" / "run", tmp_path / "checkpoints" / "run" / "step-00000010"):
        again = results_of(evaluate(name, held_out)[1])
        assert again == results


def test_a_teacher_that_gives_whole_distributions_gives_the_full_kl(
    evaluate: Evaluate, make_latent: Any, held_out: Path, tmp_path: Path, publish_to: Any, known_teacher: Any
) -> None:
    publish_to(tmp_path / "checkpoints", make_latent(), 9)
    known_teacher.max_top_k = 260
    result, record = evaluate("run", held_out)
    assert result.exit_code == 0, result.output
    results = results_of(record)
    full, bound = results["kl_full"], results["kl_to_teacher"]
    assert full["baseline"] == "lower bound, same tokens"
    # Sequences of 32 tokens are short enough to be looked at whole, and there are five: the same tokens.
    assert full["baseline_value"] == pytest.approx(bound["value"], rel=1e-5)
    assert full["value"] > bound["value"]


def test_a_student_with_the_energy_head_is_bounded(
    evaluate: Evaluate, make_latent: Any, held_out: Path, tmp_path: Path, publish_to: Any
) -> None:
    model = make_latent(head="energy", energy_noise_size=4, energy_blocks=1)
    publish_to(tmp_path / "checkpoints", model, 1)
    result, record = evaluate("newest", held_out)
    assert result.exit_code == 0, result.output
    results = results_of(record)
    assert {f"nats_per_token_bound_n{n}" for n in (1, 8, 32, 128)} <= set(results)
    assert {"kl_to_teacher_one_latent", "bits_per_byte_bound_n128", "nats_per_token_bound_n128_k3"} <= set(results)
    assert {"acceptance_one_latent", "mean_accepted_low_one_latent", "worth_latent_one_latent"} <= set(results)
    exact = {"nats_per_token", "kl_to_teacher", "bits_per_byte"} | ACCEPTANCE_IDS | DRAFT_IDS | WORTH_IDS
    assert not set(results) & exact


def test_a_token_level_student_on_a_jsonl_file_without_a_teacher(
    evaluate: Evaluate, token_level: TokenLevelModel, tokenizer: TextTokenizer, corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "token-level"
    save_pretrained(token_level, folder)
    shutil.copytree(tokenizer.folder, folder / "tokenizer")
    arguments = (folder, corpus, "--no-teacher", "--sequence-length", "32", "--gateway", "127.0.0.1:9")
    result, record = evaluate(*arguments, "--tokenizer", tmp_path)
    assert result.exit_code == 0, result.output
    results = results_of(record)
    without = {i for i in GENERATION_IDS if not i.endswith("teacher_nats")}
    assert set(results) == LIKELIHOOD_IDS | {"worth_backbone"} | BRIER_IDS | without
    assert record["checkpoint"]["kind"] == "token-level"
    assert record["teacher"] is None
    assert results_of(evaluate(*arguments)[1]) == results


def test_a_teacher_of_another_vocabulary_judges_what_is_written(
    evaluate: Evaluate,
    token_level: TokenLevelModel,
    tokenizer: TextTokenizer,
    merging_tokenizer: TextTokenizer,
    corpus: Path,
    tmp_path: Path,
) -> None:
    folder, data = tmp_path / "token-level", tmp_path / "merged"
    save_pretrained(token_level, folder)
    shutil.copytree(merging_tokenizer.folder, folder / "tokenizer")
    pack_jsonl(corpus, data, merging_tokenizer, sequence_length=32, chunk_size=4, split="held-out")
    result, _ = evaluate(folder, data)
    assert result.exit_code == 1
    assert "--teacher-tokenizer" in result.output
    result, record = evaluate(folder, data, "--teacher-tokenizer", tokenizer.folder)
    assert result.exit_code == 0, result.output
    results = results_of(record)
    assert set(results) == LIKELIHOOD_IDS | {"worth_backbone"} | BRIER_IDS | GENERATION_IDS
    assert results["gen_t07_teacher_nats"]["unit"] == "nats/teacher's token"
    assert record["teacher_tokenizer_fingerprint"] == tokenizer.fingerprint
    result, _ = evaluate(folder, data, "--teacher-tokenizer", tokenizer.folder, "--no-teacher")
    assert result.exit_code == 1
    assert "exclude each other" in result.output


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_whatever_the_teacher_is_asked_begins_with_bos_where_the_data_do(
    evaluate: Evaluate,
    make_latent: Any,
    make_run: Any,
    bos_packed: PackedData,
    bos_tokenizer_folder: Path,
    publish_to: Any,
    known_teacher: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    who: str,
) -> None:
    monkeypatch.setenv("TOKENIZER_PATH", str(bos_tokenizer_folder))
    make_run.tokenizer = TextTokenizer(bos_tokenizer_folder)
    publish_to(tmp_path / "checkpoints", make_latent(), 1)
    result, _ = evaluate("teacher" if who == "teacher" else "run", bos_packed.folder)
    assert result.exit_code == 0, result.output
    asked = [sequence for request in known_teacher.requests for sequence in request]
    asked += [list(request.token_ids.ids) for request in known_teacher.generated]
    assert len({len(sequence) for sequence in asked}) > 1
    assert {sequence[0] for sequence in asked} == {2}


def test_the_teacher_itself(evaluate: Evaluate, held_out: Path, known_teacher: Any) -> None:
    result, record = evaluate("teacher", held_out)
    assert result.exit_code == 0, result.output
    results = results_of(record)
    assert set(results) == LIKELIHOOD_IDS | BRIER_IDS | GENERATION_IDS
    # It draws from its own rows, about 2.3 nats; an end of text is in their tail.
    assert 1.0 < results["gen_t1_teacher_nats"]["value"] < 4
    assert results["reference_teacher_nats"]["value"] > 5
    asked = [list(request.token_ids.ids) for request in known_teacher.generated]
    assert {len(ids) for ids in asked} == {8, *range(8, 16)}
    assert {round(request.temperature, 3) for request in known_teacher.generated} == {1.0, 0.7, 0.0}


def test_of_training_data_only_the_held_out_end_is_taken(
    evaluate: Evaluate, make_latent: Any, packed: PackedData, tmp_path: Path, publish_to: Any
) -> None:
    publish_to(tmp_path / "checkpoints", make_latent(), 1)
    result, record = evaluate("run", packed.folder)
    assert result.exit_code == 0, result.output
    num = len(packed) * 5 // 100
    assert f"the last {num} of its sequences" in result.output
    assert record["data"]["split"] == f"train[{len(packed) - num}:{len(packed)}]"


def test_what_the_run_held_out_is_the_default(
    evaluate: Evaluate, make_latent: Any, held_out: Path, tmp_path: Path, publish_to: Any
) -> None:
    publish_to(tmp_path / "checkpoints", make_latent(), 1)
    result, _ = evaluate("run")
    assert result.exit_code == 1
    assert "there is no held-out data at" in result.output
    shutil.copytree(held_out, tmp_path / "runs" / "run" / "data" / "held-out")
    result, record = evaluate("run")
    assert result.exit_code == 0, result.output
    assert record["data"]["folder"].endswith("runs/run/data/held-out")


def test_while_nothing_is_published_the_shipped_student_is_evaluated_on_the_library(
    evaluate: Evaluate,
    make_latent: Any,
    held_out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    publish_to: Any,
) -> None:
    publish_to(tmp_path / "models", make_latent(), 3)
    monkeypatch.setenv("FALLBACK_RUN", str(tmp_path / "models" / "run"))
    result, record = evaluate("newest", "--no-teacher")
    assert result.exit_code == 0, result.output
    assert record["checkpoint"]["id"] == "run/step-00000003"
    assert "/evaluate/stdlib-held-out-" in record["data"]["folder"]
    documents = (tmp_path / "runs" / "evaluate" / "stdlib-held-out.jsonl").read_text().splitlines()
    names = {file.name for file in source_files(stdlib_root(), "held-out")}
    assert {json.loads(line)["name"] for line in documents} == names
    # Other data may be named, and what is published goes first.
    _, record = evaluate("newest", held_out, "--no-teacher")
    assert record["data"]["folder"] == str(held_out)
    publish_to(tmp_path / "checkpoints", make_latent(), 4)
    _, record = evaluate("newest", held_out, "--no-teacher")
    assert record["checkpoint"]["id"] == "run/step-00000004"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "'nothing' is no published checkpoint, no run of"),
        (["newest"], "nothing is published in CHECKPOINTS_DIR="),
        (["teacher"], "give DATA, a packed folder or a JSONL file"),
        (["teacher", "HELD_OUT", "--no-teacher"], "--no-teacher leaves out the teacher"),
        (["teacher", "HELD_OUT", "--sequence-length", "64"], "is packed already"),
        (["teacher", "missing.jsonl"], "missing.jsonl cannot be read"),
        (["teacher", "HELD_OUT", "--gateway", "127.0.0.1:9"], "`make eval` starts one for as long as it takes"),
    ],
)
def test_errors_are_one_clear_message(evaluate: Evaluate, held_out: Path, arguments: list[str], message: str) -> None:
    result, _ = evaluate(*(str(held_out) if a == "HELD_OUT" else a for a in arguments))
    assert result.exit_code == 1, result.output
    assert message in result.output.replace("\n", " ")
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_top_k": 3}, "--top-k is 4, but the teacher closed-form (known) at"),
        ({"can_score": False}, "cannot score given text"),
        ({"vocab_size": 300}, "has an output layer of 300 ids, the model has 260"),
        ({"fingerprint": "other"}, "has the tokenizer fingerprint other"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    evaluate: Evaluate,
    make_latent: Any,
    held_out: Path,
    tmp_path: Path,
    known_teacher: Any,
    changes: dict[str, Any],
    message: str,
    publish_to: Any,
) -> None:
    publish_to(tmp_path / "checkpoints", make_latent(), 1)
    for name, value in changes.items():
        setattr(known_teacher, name, value)
    result, _ = evaluate("run", held_out)
    assert result.exit_code == 1
    assert message in result.output
