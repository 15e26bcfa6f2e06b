import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.config import ChunkDecoderConfig, LogitFeaturesConfig
from latentforge.model.io import load_autoencoder, load_student, save_pretrained
from latentforge.model.latent_model import LatentModel

MakeModel = Callable[..., LatentModel]


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "energy"},
        {"chunk_decoder": ChunkDecoderConfig(kind="recurrent", width=16, rank=8, num_blocks=2)},
        {"num_layers": 0, "logit_features": LogitFeaturesConfig(kind="none")},
    ],
)
def test_a_pair_comes_back_bit_for_bit(
    make_model: MakeModel, tmp_path: Path, rng: torch.Generator, changes: dict[str, Any]
) -> None:
    model = make_model(**changes)
    save_pretrained(model.autoencoder, tmp_path / "autoencoder")
    save_pretrained(model.student, tmp_path / "student")
    again = LatentModel(load_autoencoder(tmp_path / "autoencoder"), load_student(tmp_path / "student"))
    assert again.student.config == model.student.config
    assert again.autoencoder.config == model.autoencoder.config
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    tokens = torch.randint(2, 64, (1, 3, 4), generator=rng)
    with torch.no_grad():
        first, second = (m.logits(tokens, torch.Generator().manual_seed(1)).logits for m in (model, again))
    assert first.equal(second)
    assert sorted(p.name for p in (tmp_path / "student").iterdir()) == ["config.json", "model.safetensors"]


@pytest.fixture
def saved(make_model: MakeModel, tmp_path: Path) -> Path:
    save_pretrained(make_model().autoencoder, tmp_path)
    return tmp_path


def test_a_student_is_no_autoencoder(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: kind is 'autoencoder', but 'student' is wanted here"):
        load_student(saved)


def test_torn_and_missing_files_are_named(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors: "):
        load_autoencoder(saved)
    whole = weights.read_bytes()
    weights.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors: "):
        load_autoencoder(saved)
    weights.write_bytes(whole)
    (saved / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: "):
        load_autoencoder(saved)


def test_weights_that_do_not_fit_their_config_are_refused(saved: Path) -> None:
    path = saved / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "hidden_size": 8}))
    with pytest.raises(ValueError, match=r"model\.safetensors: the weights do not fit config\.json"):
        load_autoencoder(saved)
    path.write_text(json.dumps({**config, "latent_size": 0}))
    with pytest.raises(ValueError, match=r"config\.json: latent_size is 0: .* greater than or equal to 1"):
        load_autoencoder(saved)
    path.write_text(json.dumps({**config, "depth": 3}))
    with pytest.raises(ValueError, match=r"config\.json: depth is not a known field"):
        load_autoencoder(saved)


@pytest.mark.parametrize("size", [10**7, 10**15])
@pytest.mark.parametrize(
    "name", ["hidden_size", "num_layers", "head_dim", "vocab_size", "window", "rank", "num_blocks"]
)
def test_a_config_that_asks_for_terabytes_is_refused_before_memory_is_taken(
    make_model: MakeModel, tmp_path: Path, name: str, size: int
) -> None:
    decoder = ChunkDecoderConfig(kind="recurrent", width=16, rank=8)
    save_pretrained(make_model(chunk_decoder=decoder).student, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    (config if name in config else config["chunk_decoder"])[name] = size
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"{name} is {size}, but model\.safetensors beside it has only \d+ "):
        load_student(tmp_path)


def test_weights_of_fewer_bits_are_widened_and_of_more_or_other_kinds_refused(
    make_model: MakeModel, tmp_path: Path
) -> None:
    student = make_model().student
    save_pretrained(student, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"bias": tensors["bias"].bfloat16()}, path)
    assert load_student(tmp_path).bias.equal(student.bias.bfloat16().float())
    for dtype in (torch.float64, torch.int64):
        save_file(tensors | {"bias": tensors["bias"].to(dtype)}, path)
        with pytest.raises(ValueError, match=rf"bias is {dtype}, not torch\.float32"):
            load_student(tmp_path)


@pytest.mark.parametrize("name", ["to_mean.bias", "stranger"])
def test_a_tensor_too_few_or_too_many_is_refused(saved: Path, name: str) -> None:
    tensors = load_file(saved / "model.safetensors")
    if tensors.pop(name, None) is None:
        tensors[name] = torch.zeros(1)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors: the weights do not fit (.|\n)*{name}"):
        load_autoencoder(saved)


def test_saving_the_same_module_twice_gives_the_same_bytes(make_model: MakeModel, tmp_path: Path) -> None:
    model: Autoencoder = make_model().autoencoder
    for name in ("a", "b"):
        save_pretrained(model, tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
