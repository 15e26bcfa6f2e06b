import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from latentforge.model.causal_lm import INDEX_FILE, open_causal_lm
from latentforge.model.config import StudentConfig
from latentforge.model.io import save_pretrained
from latentforge.model.token_level import TokenLevelModel, token_level_config

SIZES: dict[str, Any] = {
    "vocab_size": 70,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def saved(folder: Path, kind: str = "llama", shard: str | None = None, **changes: Any) -> Any:
    """A model of transformers with random weights, and its folder."""
    torch.manual_seed(3)
    classes: Any = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}[kind]
    model = classes[1](classes[0](**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms of ones would hide where they belong.
            parameter.copy_(torch.rand_like(parameter) + 0.5 if parameter.ndim == 1 else parameter * 5)
    model.save_pretrained(folder, **({} if shard is None else {"max_shard_size": shard}))
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_it_has_the_sizes_that_its_config_says(tmp_path: Path, kind: str) -> None:
    saved(tmp_path, kind, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    found = open_causal_lm(str(tmp_path))
    assert found.sizes == {
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "qk_norm": kind == "qwen3",
        "norm_eps": 1e-5,
        "rope_theta": 5e5,
        "rope_scaling": None,
    }
    assert (found.vocab_size, found.max_positions) == (70, 64)


def test_a_config_of_older_spelling_is_read_too(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name in ("rope_parameters", "head_dim"):
        config.pop(name)
    path.write_text(json.dumps(config | {"rope_theta": 7e4, "rope_scaling": LLAMA3}))
    sizes = open_causal_lm(str(tmp_path)).sizes
    assert sizes["rope_theta"] == 7e4
    assert sizes["rope_scaling"] == LLAMA3
    assert sizes["head_dim"] == 8


def test_weights_in_several_files_are_the_same(tmp_path: Path) -> None:
    saved(tmp_path / "one")
    saved(tmp_path / "many", shard="20KB")
    assert (tmp_path / "many" / INDEX_FILE).is_file()
    one, many = (open_causal_lm(str(tmp_path / name)) for name in ("one", "many"))
    theirs = many.layers()
    for name, value in one.layers().items():
        assert value.equal(theirs[name]), name
    assert one.inputs().equal(many.inputs())
    assert one.outputs().equal(many.inputs())


def test_an_output_table_of_its_own_is_taken(tmp_path: Path) -> None:
    model = saved(tmp_path, tie_word_embeddings=False)
    found = open_causal_lm(str(tmp_path))
    assert found.outputs().equal(model.lm_head.weight)
    assert not found.outputs().equal(found.inputs())


@pytest.mark.parametrize("tables", [{}, {"embed_size": 8, "output_rank": 12}, {"embed_size": 32, "output_rank": 32}])
@torch.no_grad()
def test_a_token_level_student_is_one(
    tmp_path: Path, student_config: Callable[..., StudentConfig], tables: dict[str, int]
) -> None:
    torch.manual_seed(0)
    model = TokenLevelModel(token_level_config(student_config(qk_norm=False)).model_copy(update=tables))
    if model.input_map is not None:
        model.input_map.bias.normal_()
    save_pretrained(model, tmp_path)
    found = open_causal_lm(str(tmp_path))
    assert found.sizes["qk_norm"] is False
    tokens = torch.arange(5)[None]
    torch.testing.assert_close(found.inputs()[tokens], model.inputs_of(model.embed(tokens)))
    layer = model.output_of(torch.eye(32)[None])
    torch.testing.assert_close(found.outputs(), (layer.inputs @ layer.weight.T).T)
    state = model.backbone.state_dict()
    assert all(value.equal(state[name]) for name, value in found.layers().items())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "biases": ({"attention_bias": True}, "attention_bias is True"),
    "biases of the MLP": ({"mlp_bias": True}, "mlp_bias is True"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "scaling by length": (
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        r"rope_scaling\.rope_type='dynamic' is none of linear, llama3, yarn",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_students_layers_do_not_have_is_refused_and_named(tmp_path: Path, name: str) -> None:
    changes, message = REFUSED[name]
    saved(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        open_causal_lm(str(tmp_path))


def test_sliding_windows_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, "qwen3", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(ValueError, match="layer_types has 'sliding_attention'"):
        open_causal_lm(str(tmp_path))


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "fewer layers": ({"num_hidden_layers": 2}, r"have model\.layers\.2\..*config only 2 layers"),
    "more layers": ({"num_hidden_layers": 4}, r"have no model\.layers\.3\."),
    "another width": ({"intermediate_size": 40}, r"has the shape \[.*48.*\], and its config wants \[.*40.*\]"),
    "another vocabulary": ({"vocab_size": 71}, r"embed_tokens\.weight has the shape \[70, 32\].*wants \[71, 32\]"),
    "an output table that is missing": ({"tie_word_embeddings": False}, r"have no lm_head\.weight"),
    "another architecture": ({"model_type": "gpt2"}, "model_type is 'gpt2'; give a model of .* qwen3 or llama"),
    "quantised": ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_does_not_fit_the_weights_is_refused(tmp_path: Path, name: str) -> None:
    changes, message = CONFIGS[name]
    saved(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        open_causal_lm(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "autoencoder"}', '{"kind": "token-level"}'])
def test_another_folder_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: "):
        open_causal_lm(str(tmp_path))


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"model\.safetensors: "):
        open_causal_lm(str(tmp_path))


def test_neither_a_folder_nor_a_model_of_the_hub_is_refused() -> None:
    with pytest.raises(ValueError, match="no/such/folder is neither a folder that is there nor a model of the hub"):
        open_causal_lm("no/such/folder")


def test_some_layers_alone_are_taken_in_their_order(tmp_path: Path) -> None:
    model = saved(tmp_path)
    found = open_causal_lm(str(tmp_path)).with_layers([0, 1, 2]).with_layers([0, 2])
    assert found.sizes["num_layers"] == 2
    layers = found.layers()
    assert not [name for name in layers if name.startswith("layers.2.")]
    for ours, theirs in ((0, 0), (1, 2)):
        for name, tensor in model.model.layers[theirs].state_dict().items():
            assert torch.equal(layers[f"layers.{ours}.{name}"], tensor)
    assert torch.equal(layers["norm.weight"], model.model.norm.weight)


@pytest.mark.parametrize("kept", [[], [2, 1], [0, 0], [0, 3], [-1, 0]])
def test_layers_that_it_does_not_have_are_refused(tmp_path: Path, kept: list[int]) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match="layers 0 to 2; give some of these, each once, in ascending order"):
        open_causal_lm(str(tmp_path)).with_layers(kept)
