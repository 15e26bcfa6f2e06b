from collections.abc import Callable

import pytest

from latentforge.model.config import AutoencoderConfig, StudentConfig

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


def test_autoencoder_refuses_pad_outside_vocabulary() -> None:
    with pytest.raises(ValueError, match="pad_id=4096 is not in the vocabulary of 4096 ids"):
        AutoencoderConfig(vocab_size=4096, pad_id=4096)


def test_configs_survive_json(student_config: MakeConfig) -> None:
    config = student_config(head="energy")
    assert StudentConfig.model_validate_json(config.model_dump_json()) == config
