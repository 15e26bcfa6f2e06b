from collections.abc import Callable

import pytest

from latentforge.model.config import AutoencoderConfig, StudentConfig
from latentforge.model.token_level import token_level_config

MakeConfig = Callable[..., StudentConfig]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"pad_id": 64}, ["pad_id=64", "64 ids", "0..63"]),
        ({"eos_id": 99}, ["eos_id=99", "0..63"]),
        ({"pad_id": 0}, ["pad_id and eos_id are both 0", "pad id of its own"]),
        ({"num_heads": 3, "num_kv_heads": 2}, ["num_heads=3", "num_kv_heads=2", "divisor"]),
        ({"head_dim": 15}, ["head_dim=15", "even"]),
        ({"chunk_size": 0}, ["chunk_size", "greater than or equal to 1"]),
        ({"head": "diffusion"}, ["head", "deterministic"]),
        ({"chunk_decoder": {"kind": "lstm"}}, ["chunk_decoder", "recurrent"]),
        (
            {"chunk_decoder": {"kind": "none"}, "logit_features": {"kind": "none"}},
            ["logit_features.kind='none'", "chunk_decoder.kind='none'", "take a decoder"],
        ),
        (
            {"chunk_decoder": {"kind": "none"}, "num_layers": 0},
            ["num_layers=0", "chunk_decoder.kind='none'", "at least 1"],
        ),
        ({"widht": 3}, ["widht"]),
    ],
)
def test_impossible_student_names_field_value_and_fix(
    student_config: MakeConfig, changes: dict[str, object], names: list[str]
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        student_config(**changes)
    for name in names:
        assert name in str(error.value)


def test_a_token_level_student_without_layers_is_refused(student_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match=r"(?s)num_layers.*greater than or equal to 1"):
        token_level_config(student_config(num_layers=0))


def test_autoencoder_refuses_pad_outside_vocabulary() -> None:
    with pytest.raises(ValueError, match="pad_id=4096 is not in the vocabulary of 4096 ids"):
        AutoencoderConfig(vocab_size=4096, pad_id=4096)


@pytest.mark.parametrize(("name", "fix"), [("latent_size", 104), ("chunk_hidden_size", 104)])
def test_equal_codes_need_sizes_that_k_divides(name: str, fix: int) -> None:
    with pytest.raises(ValueError, match=f"{name}=100 with equal_codes=true .* chunk_size=8; set it to {fix} or equal"):
        AutoencoderConfig.model_validate({"vocab_size": 10, "pad_id": 1, name: 100, "equal_codes": True})
    assert AutoencoderConfig.model_validate({"vocab_size": 10, "pad_id": 1, name: 100})


def test_configs_survive_json(student_config: MakeConfig) -> None:
    config = student_config(head="energy")
    assert StudentConfig.model_validate_json(config.model_dump_json()) == config
