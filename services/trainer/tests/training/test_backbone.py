import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM

from latentforge.model.config import TokenLevelConfig
from latentforge.model.io import save_pretrained
from latentforge.model.student import backbone_config
from latentforge.model.token_level import TokenLevelModel
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.training.backbone import load_backbone

SIZES = {"hidden_size": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "intermediate_size": 24}


def token_level(seed: int, num_layers: int = 2) -> TokenLevelModel:
    torch.manual_seed(seed)
    config = TokenLevelConfig(vocab_size=40, pad_id=1, eos_id=0, num_layers=num_layers, max_tokens=32, **SIZES)
    return TokenLevelModel(config)


def test_a_token_level_students_layers_are_taken_over(tmp_path: Path) -> None:
    source, target = token_level(1), token_level(2)
    save_pretrained(source, tmp_path)
    load_backbone(target.backbone, tmp_path)
    ours, theirs = target.backbone.state_dict(), source.backbone.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert not target.embedding.weight.equal(source.embedding.weight)


def test_the_layers_of_a_model_of_transformers_are_taken_over(tmp_path: Path) -> None:
    target = token_level(2)
    torch.manual_seed(1)
    source = Qwen3ForCausalLM(backbone_config(target.config, 32, vocab_size=50))
    source.save_pretrained(tmp_path)
    load_backbone(target.backbone, tmp_path)
    for name, value in target.backbone.state_dict().items():
        assert value.equal(source.model.state_dict()[name]), name


def test_other_sizes_are_refused_and_named(tmp_path: Path) -> None:
    save_pretrained(token_level(1), tmp_path)
    with pytest.raises(TrainerError, match=r"layers\.2\..* is missing there and \(.*student\.model the same sizes"):
        load_backbone(token_level(2, num_layers=3).backbone, tmp_path)


@pytest.mark.parametrize("config", [None, {"kind": "autoencoder"}, {}])
def test_another_folder_is_refused(tmp_path: Path, config: dict[str, str] | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TrainerError, match=r"init_backbone=.*give the folder of a token-level student or of a Qwen3"):
        load_backbone(token_level(2).backbone, tmp_path)
