import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from latentforge.model import causal_lm
from latentforge.model.causal_lm import open_causal_lm
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.pretrained import check_vocabulary
from latentforge.trainer.config.recipe import Recipe, load_recipe
from latentforge.trainer.errors import RecipeError

# The tiny recipe's student with room for the pretrained model's sizes.
SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "intermediate_size": 16}


@pytest.fixture
def pretrained(tmp_path: Path, tokenizer: TextTokenizer) -> Path:
    """A Llama of six layers, which differs from the tiny recipe in depth and rotary base alone."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=16,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=16,
        max_position_embeddings=8,
        rope_parameters={"rope_type": "default", "rope_theta": 7e4},
    )
    folder = tmp_path / "llama"
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    for path in tokenizer.folder.iterdir():
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def load(pretrained: Path, recipe_file: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Loads the tiny recipe without sizes, to start from the pretrained model."""
    lines = recipe_file.read_text().splitlines()
    first = lines.index("[student.model]")
    kept = lines[: first + 1] + [line for line in lines[first + 1 :] if line.split(" ")[0] not in SIZES]
    path = tmp_path / "unsized.toml"
    path.write_text("\n".join(kept))
    return lambda **changes: load_recipe(
        str(path),
        Path(),
        {"student.init_from": str(pretrained), **{k.replace("__", "."): v for k, v in changes.items()}},
    )


def test_sizes_that_the_recipe_leaves_out_are_the_pretrained_models(load: Callable[..., Recipe]) -> None:
    recipe = load()
    config = recipe.student_config(1, 0, recipe.autoencoder_config(260, 1))
    assert (config.num_layers, config.rope_theta, config.qk_norm, config.head_dim) == (6, 7e4, False, 8)
    baseline = recipe.token_level_config(260, 1, 0)
    assert (baseline.num_layers, baseline.rope_theta, baseline.qk_norm) == (6, 7e4, False)


def test_a_model_is_checked_once_until_its_files_change(
    load: Callable[..., Recipe], pretrained: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counted(place: str) -> Any:
        opened.append(place)
        return open_causal_lm(place)

    monkeypatch.setattr(causal_lm, "open_causal_lm", counted)
    recipe = load(autoencoder__init_from=str(pretrained), data__sequence_length=32)
    check_vocabulary(recipe.student, recipe.autoencoder, tokenizer, 260)
    assert opened == [str(pretrained)]
    path = pretrained / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 7}))
    with pytest.raises(RecipeError, match=r"student\.init_from=.*layers\.6"):
        load()


def test_the_same_sizes_said_again_are_no_clash(load: Callable[..., Recipe]) -> None:
    assert load(student__model__num_layers=6, student__model__rope_theta=70000).student.model["num_layers"] == 6


def test_a_smaller_student_takes_some_of_the_layers(load: Callable[..., Recipe]) -> None:
    assert load(student__init_layers=[0, 1, 5]).student.model["num_layers"] == 3


def test_an_empty_name_takes_out_what_the_recipe_has(load: Callable[..., Recipe]) -> None:
    sizes = {f"student__model__{name}": value for name, value in SIZES.items()}
    assert load(**sizes, student__init_from="").student.init_from is None


@pytest.mark.parametrize(
    ("field", "value", "theirs"),
    [("num_layers", 2, "6"), ("rope_theta", 10000.0, "70000.0"), ("qk_norm", True, "False")],
)
def test_other_sizes_are_refused_by_name(load: Callable[..., Recipe], field: str, value: Any, theirs: str) -> None:
    with pytest.raises(
        RecipeError, match=rf"student\.model\.{field} is {value}, .* has {theirs}: .*leave the field out"
    ):
        load(**{f"student__model__{field}": value})


def test_without_its_layers_sizes_are_the_recipes(load: Callable[..., Recipe]) -> None:
    sizes = {f"student__model__{name}": value for name, value in SIZES.items()}
    recipe = load(**sizes, student__init_parts=["inputs"])
    assert recipe.student.model["num_layers"] == 1
    assert "rope_theta" not in recipe.student.model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student__model__embed_size": 17}, r"student\.model\.embed_size is 17, .* are 16 wide; set it to 16 or less"),
        ({"student__model__chunk_decoder": {"rank": 20}}, r"chunk_decoder\.rank is 20, .*16 or less"),
        (
            {"student__model__logit_features": {"kind": "linear", "width": 32}},
            r"student\.model\.logit_features\.width is 32, .*16 or less",
        ),
        ({"student__token_level__embed_size": 17}, r"student\.token_level\.embed_size is 17, .*16 or less"),
        ({"student__token_level__output_rank": 17}, r"student\.token_level\.output_rank is 17, .*16 or less"),
        ({"data__sequence_length": 64}, r"max_chunks is 16, .* made for 8 positions; shorten data\.sequence_length"),
        ({"student__init_parts": []}, r"student\.init_parts"),
        ({"student__init_parts": ["head"]}, r"student\.init_parts.*'layers', 'inputs' or 'outputs'"),
        ({"student__init_layers": [0, 6]}, r"student\.init_layers is \[0, 6\], .* layers 0 to 5; .*ascending order"),
        ({"student__init_layers": [1, 1]}, r"student\.init_layers is \[1, 1\], .*each once"),
        ({"student__init_layers": []}, r"student\.init_layers"),
        ({"student__init_layers": [0], "student__init_parts": ["inputs"]}, r"init_layers is \[0\], and no layers are"),
        ({"student__init_from": "no/such/folder"}, r"student\.init_from=no/such/folder: .*neither a folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    load: Callable[..., Recipe], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        load(**changes)


def test_an_autoencoders_table_is_no_wider_than_the_pretrained_models(
    load: Callable[..., Recipe], pretrained: Path
) -> None:
    with pytest.raises(RecipeError, match=r"autoencoder\.model\.hidden_size is 20, .*16 or less"):
        load(autoencoder__init_from=str(pretrained), autoencoder__model__hidden_size=20)


def check(recipe: Recipe, tokenizer: TextTokenizer, vocab_size: int = 260) -> None:
    check_vocabulary(recipe.student, recipe.autoencoder, tokenizer, vocab_size)


def test_token_tables_of_the_same_ids_are_taken(load: Callable[..., Recipe], tokenizer: TextTokenizer) -> None:
    check(load(), tokenizer)


def test_token_tables_of_other_ids_are_refused(
    load: Callable[..., Recipe], pretrained: Path, tokenizer: TextTokenizer
) -> None:
    path = pretrained / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(values))
    with pytest.raises(RecipeError, match=r"student\.init_from=.*token tables are of other ids.*layers alone"):
        check(load(), tokenizer)
    check(load(student__init_parts=["layers"]), tokenizer)


def test_token_tables_of_unknown_ids_are_refused(
    load: Callable[..., Recipe], pretrained: Path, tokenizer: TextTokenizer
) -> None:
    (pretrained / "tokenizer.json").unlink()
    with pytest.raises(RecipeError, match=r"whose ids its token tables have is not known"):
        check(load(), tokenizer)


def test_fewer_ids_than_the_run_has_are_refused(load: Callable[..., Recipe], tokenizer: TextTokenizer) -> None:
    with pytest.raises(RecipeError, match=r"vocab_size is 300, .* has 260 ids; lower vocab_size"):
        check(load(), tokenizer, 300)
