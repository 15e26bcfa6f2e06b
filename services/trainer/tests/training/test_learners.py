import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from latentforge.core.checkpoint_files import CheckpointFiles
from latentforge.model.autoencoder import Autoencoder
from latentforge.model.checkpoint import load_checkpoint
from latentforge.model.io import load_token_level, save_pretrained
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.targets.batches import held_out_sequences
from latentforge.trainer.training.autoencoder import train_autoencoder
from latentforge.trainer.training.student import train_student, train_token_level


def test_it_learns_and_leaves_a_folder_that_can_be_loaded(
    known_teacher: Any, make_run: Any, packed: PackedData
) -> None:
    steps = {"student.optim.steps": 40, "student.optim.batch_size": 8, "student.optim.lr": 0.01}
    run = make_run(port=known_teacher.port, overrides=steps)
    result: Any = train_token_level(run, *split_tail(packed))
    first, last = result.curve[0], result.curve[-1]
    assert last.ce < 0.8 * first.ce
    assert last.kd < 0.8 * first.kd
    assert last.mse is None
    assert result.checkpoints == [str(run.folder / "token-level")]
    model = load_token_level(run.folder / "token-level")
    assert model.config.max_tokens == 32
    assert (run.folder / "token-level" / "tokenizer" / "tokenizer.json").is_file()


def test_resume_equals_no_interruption_bit_for_bit(known_teacher: Any, make_run: Any, packed: PackedData) -> None:
    data = split_tail(packed)
    whole = make_run("whole", port=known_teacher.port)
    result: Any = train_token_level(whole, *data)
    cut = make_run("cut", port=known_teacher.port, stop_at=("token-level", 5))
    with pytest.raises(Interrupted):
        train_token_level(cut, *data)
    resumed = train_token_level(make_run("cut", port=known_teacher.port), *data)
    ours, theirs = (load_file(run.folder / "token-level" / "model.safetensors") for run in (whole, cut))
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert np.array_equal(value, theirs[name]), name
    assert resumed.curve == result.curve


def test_one_with_narrow_tables_resumes_bit_for_bit_and_can_be_loaded(
    known_teacher: Any, make_run: Any, packed: PackedData
) -> None:
    tables = {"student.token_level.embed_size": 8, "student.token_level.output_rank": 12}
    data = split_tail(packed)
    whole = make_run("whole", port=known_teacher.port, overrides=tables)
    result: Any = train_token_level(whole, *data)
    cut = make_run("cut", port=known_teacher.port, overrides=tables, stop_at=("token-level", 5))
    with pytest.raises(Interrupted):
        train_token_level(cut, *data)
    resumed = train_token_level(make_run("cut", port=known_teacher.port, overrides=tables), *data)
    assert resumed.curve == result.curve
    assert result.curve[-1].ce < result.curve[0].ce
    models = [load_token_level(run.folder / "token-level") for run in (whole, cut)]
    assert models[0].output_table.weight.shape == (260, 12)
    for name, value in models[0].state_dict().items():
        assert value.equal(models[1].state_dict()[name]), name


# Norms keep their weights in float32, and torch says that this costs speed.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_it_learns_in_bfloat16(known_teacher: Any, make_run: Any, packed: PackedData) -> None:
    run = make_run(port=known_teacher.port, overrides={"precision": "bfloat16", "student.optim.steps": 20})
    curve: Any = train_token_level(run, *split_tail(packed)).curve
    first, last = curve[0], curve[-1]
    assert last.ce < first.ce
    assert last.kd < first.kd


def test_it_is_taught_what_a_student_is_taught(
    known_teacher: Any, make_run: Any, packed: PackedData, tmp_path: Path
) -> None:
    data = split_tail(packed)
    run = make_run("student", port=known_teacher.port)
    save_pretrained(Autoencoder(run.recipe.autoencoder_config(260, 1)), tmp_path)
    train_student(run, *data, tmp_path)
    baseline: Any = train_token_level(make_run("baseline", port=known_teacher.port), *data)
    assert baseline.cache.misses == 0
    assert baseline.tokens == 12 * 2 * 32


def test_without_a_teacher_it_learns_the_text_alone(make_run: Any, packed: PackedData) -> None:
    overrides = {"student.objective": "chunk-ce", "teacher.targets": "text", "student.optim.steps": 20}
    run = make_run(port=9, overrides=overrides)
    result: Any = train_token_level(run, *split_tail(packed))
    assert result.teacher is None
    parts = {"worth_backbone", "worth_copy"}
    assert result.curve[-1].model_dump(exclude_none=True).keys() == {"step", "ce"} | parts
    assert result.curve[-1].ce < result.curve[0].ce


def test_a_student_starts_from_its_backbone(make_run: Any, packed: PackedData, tmp_path: Path) -> None:
    overrides = {"student.objective": "chunk-ce", "teacher.targets": "text", "student.optim.steps": 5}
    data = split_tail(packed)
    baseline = make_run("baseline", port=9, overrides=overrides)
    train_token_level(baseline, *data)
    # Steps too small to be seen.
    more = {"student.init_from": str(baseline.folder / "token-level"), "student.optim.lr": 1e-9}
    more |= {"student.init_parts": ["layers"]}
    run = make_run("student", port=9, overrides=overrides | more, stop_at=("student", 2))
    save_pretrained(Autoencoder(run.recipe.autoencoder_config(260, 1)), tmp_path / "autoencoder")
    with pytest.raises(Interrupted):
        train_student(run, *data, tmp_path / "autoencoder")
    result: Any = train_student(
        make_run("student", port=9, overrides=overrides | more), *data, tmp_path / "autoencoder"
    )
    published = run.settings.checkpoints_dir / result.checkpoints[-1]
    ours = load_file(published / "student" / "model.safetensors")
    theirs = load_file(baseline.folder / "token-level" / "model.safetensors")
    layers = [name for name in theirs if name.startswith("backbone.layers.")]
    assert layers
    for name in layers:
        assert np.allclose(ours[name], theirs[name], atol=1e-5), name


def pretrained_model(folder: Path, tokenizer: TextTokenizer, **changes: Any) -> Any:
    """A small Llama that predicts something, with the tests' tokenizer beside it."""
    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "head_dim": 8}
    sizes |= {"num_key_value_heads": 1, "intermediate_size": 32, "vocab_size": 264, "initializer_range": 0.3}
    sizes |= {"max_position_embeddings": 64, "tie_word_embeddings": True}
    sizes |= {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}}
    torch.manual_seed(4)
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes | changes)).eval()
    model.save_pretrained(folder)
    for path in tokenizer.folder.iterdir():
        shutil.copy(path, folder)
    return model


# The recipe's own sizes are others.
UNSET = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size")


@pytest.fixture
def pretrained_recipe(recipe_file: Path, tmp_path: Path) -> Path:
    """The tiny recipe without sizes of layers, and without induction heads."""
    lines = recipe_file.read_text().split("[student.model]")
    model = [line for line in lines[1].splitlines() if line.split(" ")[0] not in (*UNSET, "induction")]
    path = tmp_path / "pretrained.toml"
    path.write_text("[student.model]".join([lines[0], "\n".join(model)]))
    return path


@pytest.mark.parametrize("kept", [None, [0, 2]])
def test_a_token_level_student_starts_at_the_pretrained_models_loss(
    make_run: Any, packed: PackedData, pretrained_recipe: Path, tokenizer: TextTokenizer, tmp_path: Path, kept: Any
) -> None:
    theirs = pretrained_model(tmp_path / "llama", tokenizer, num_hidden_layers=3)
    make_run.recipe_file = pretrained_recipe
    overrides = {"student.objective": "chunk-ce", "teacher.targets": "text", "student.optim.steps": 3}
    overrides |= {"student.init_from": str(tmp_path / "llama"), "vocab_size": 264}
    if kept is not None:
        overrides |= {"student.init_layers": kept}
        theirs.model.layers = torch.nn.ModuleList([theirs.model.layers[number] for number in kept])
        theirs.config.num_hidden_layers = len(kept)
    run = make_run(port=9, overrides=overrides)
    train, held_out = split_tail(packed)
    result: Any = train_token_level(run, train, held_out)
    losses = []
    for text in held_out_sequences(held_out, run.recipe.student.validation_sequences):
        with torch.no_grad():
            logits = theirs(torch.cat([torch.tensor([0]), text[:-1]])[None], use_cache=False).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[1:], text[1:]))
    assert result.curve[0].ce == pytest.approx(float(torch.stack(losses).mean()), abs=1e-4)


def test_a_latent_student_of_a_pretrained_model_resumes_bit_for_bit(
    make_run: Any, packed: PackedData, pretrained_recipe: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    pretrained_model(tmp_path / "llama", tokenizer)
    make_run.recipe_file = pretrained_recipe
    place = str(tmp_path / "llama")
    overrides = {"student.objective": "chunk-ce", "teacher.targets": "text", "student.optim.steps": 8}
    overrides |= {"student.init_from": place, "autoencoder.init_from": place}
    overrides |= {"student.optim.groups.layers": {"rate": 0.1, "frozen_steps": 3, "optimizer": "adamw"}}
    data = split_tail(packed)
    run = make_run("whole", port=9, overrides=overrides)
    assert run.recipe.student.model["num_layers"] == 2
    train_autoencoder(run, *data)
    autoencoder = run.folder / "autoencoder"
    whole: Any = train_student(run, *data, autoencoder)
    cut = make_run("cut", port=9, overrides=overrides, stop_at=("student", 5))
    with pytest.raises(Interrupted):
        train_student(cut, *data, autoencoder)
    resumed: Any = train_student(make_run("cut", port=9, overrides=overrides), *data, autoencoder)
    assert resumed.curve == whole.curve
    ours, theirs = (
        load_file(run.settings.checkpoints_dir / result.checkpoints[-1] / "student" / "model.safetensors")
        for result in (whole, resumed)
    )
    assert all(np.array_equal(value, theirs[name]) for name, value in ours.items())
    assert load_checkpoint(
        CheckpointFiles(run.settings.checkpoints_dir / whole.checkpoints[-1])
    ).model.student.config.rope_theta == pytest.approx(5e4)


def test_what_is_frozen_stays_the_pretrained_models_even_if_its_folder_changes(
    make_run: Any, packed: PackedData, pretrained_recipe: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    pretrained_model(tmp_path / "llama", tokenizer)
    layers = load_file(tmp_path / "llama" / "model.safetensors")
    make_run.recipe_file = pretrained_recipe
    overrides: dict[str, Any] = {"student.objective": "chunk-ce", "teacher.targets": "text", "student.optim.steps": 8}
    overrides |= {"student.init_from": str(tmp_path / "llama"), "student.model.embed_size": 24}
    overrides |= {"student.model.positions": "tokens", "student.model.logit_features": {"kind": "none"}}
    overrides |= {"student.model.chunk_decoder": {"kind": "split", "num_layers": 1, "width": 16, "rank": 24}}
    overrides |= {f"student.optim.groups.{name}.rate": 0 for name in ("layers", "inputs", "chunks", "outputs")}
    data = split_tail(packed)
    run = make_run("whole", port=9, overrides=overrides)
    train_autoencoder(run, *data)
    whole: Any = train_student(run, *data, run.folder / "autoencoder")
    cut = make_run("cut", port=9, overrides=overrides, stop_at=("student", 5))
    with pytest.raises(Interrupted):
        train_student(cut, *data, run.folder / "autoencoder")
    pretrained_model(tmp_path / "llama", tokenizer, initializer_range=0.2)
    resumed: Any = train_student(make_run("cut", port=9, overrides=overrides), *data, run.folder / "autoencoder")
    assert resumed.curve == whole.curve
    ours = load_file(run.settings.checkpoints_dir / resumed.checkpoints[-1] / "student" / "model.safetensors")
    for name in ("layers.0.mlp.up_proj.weight", "layers.1.self_attn.q_proj.weight", "norm.weight"):
        assert ours[f"backbone.{name}"].equal(layers[f"model.{name}"]), name
    assert whole.curve[-1].ce < whole.curve[0].ce
    # A state of before such groups were left out of the optimizers cannot be told from one of now by its tensors.
    identity = run.folder / "state" / "student" / "identity.json"
    before = json.loads(identity.read_text())
    assert before.pop("frozen") == ["chunks", "inputs", "layers", "outputs"]
    identity.write_text(json.dumps(before))
    with pytest.raises(TrainerError, match=r"begun with frozen = None.*--fresh"):
        train_student(make_run("whole", port=9, overrides=overrides), *data, run.folder / "autoencoder")
