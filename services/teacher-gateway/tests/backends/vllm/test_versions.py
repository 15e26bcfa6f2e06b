import logging
from pathlib import Path

import pytest

from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.backends.model_folder import ModelConfig, read_config
from latentforge.gateway.backends.vllm.versions import TESTED_VERSION, check_version

DENSE = ModelConfig(300, "bfloat16")
HYBRID = ModelConfig(300, "bfloat16", linear_attention=True)


@pytest.mark.parametrize(
    ("version", "config", "why"),
    [
        ("0.10.2", DENSE, "gives no token ids"),
        ("0.9.0rc1", HYBRID, "gives no token ids"),
        ("0.29.0", HYBRID, "57562"),
        ("0.29.1.dev12+g9d1398d9", HYBRID, "57562"),
    ],
)
def test_a_version_that_is_known_to_be_bad_is_refused_by_name(version: str, config: ModelConfig, why: str) -> None:
    with pytest.raises(BackendError) as caught:
        check_version(version, config, "VLLM_REMOTE_URL")
    message = str(caught.value)
    assert message.startswith(f"vLLM {version} at VLLM_REMOTE_URL ")
    assert why in message
    assert message.endswith(f"serve the teacher with vLLM {TESTED_VERSION}")
    assert caught.value.kind is FailureKind.MISCONFIGURED


@pytest.mark.parametrize("version", ["0.29.0", "0.11.0", "0.31.2", "1.0.0"])
def test_another_version_than_the_tested_one_is_taken_and_said(version: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_version(version, DENSE, "VLLM_LOCAL_URL")
    (record,) = caplog.records
    assert f"vLLM {version} at VLLM_LOCAL_URL was not tested" in record.getMessage()


@pytest.mark.parametrize(
    "version",
    [
        TESTED_VERSION,
        f"{TESTED_VERSION}+cpu",
        "",
        "nightly",
        "0.1.dev19908+g728d3ad09",
        "0.30.dev0",
        "0.32.dev5+gabc",
        "0.12dev1",
    ],
)
def test_the_tested_version_and_one_that_cannot_be_told_are_taken_silently(
    version: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check_version(version, HYBRID, "VLLM_LOCAL_URL")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"vocab_size": 300, "linear_num_value_heads": 2}', True),
        ('{"text_config": {"vocab_size": 300, "linear_num_value_heads": 2}}', True),
        ('{"text_config": {"vocab_size": 300}, "vision_config": {}}', False),
    ],
)
def test_linear_attention_is_read_of_the_text_model(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "config.json").write_text(text)
    assert read_config(tmp_path) == ModelConfig(300, "unknown", linear_attention=expected)
