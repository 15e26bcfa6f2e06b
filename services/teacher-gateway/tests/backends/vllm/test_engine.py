"""What is said of an engine inside the gateway. tests/vllm runs one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from latentforge.gateway.backends.base import TeacherDescription
from latentforge.gateway.backends.model_folder import read_model_files
from latentforge.gateway.backends.vllm.engine import describe_engine
from latentforge.gateway.cache.base import KeyMaker
from latentforge.gateway.settings import GatewaySettings

IDS = np.arange(5, dtype=np.uint32)


def test_rows_of_another_dtype_version_or_revision_are_others(random_teacher: Path) -> None:
    files = read_model_files(random_teacher)

    def described(
        dtype: torch.dtype = torch.bfloat16, version: str = "0.32.0", weights: str = "w", **changes: Any
    ) -> TeacherDescription:
        settings = GatewaySettings(
            teacher_backend="vllm-local",
            vllm_local_mode="in-process",
            vllm_local_model=str(random_teacher),
            **changes,
        )
        config = SimpleNamespace(dtype=dtype, max_model_len=512)
        return describe_engine(settings, files, config, version=version, weights=weights)

    first = described()
    assert (first.compute_dtype, first.engine, first.max_sequence_length) == (
        "bfloat16",
        "vllm 0.32.0 in-process",
        511,
    )
    assert described(torch.float32).compute_dtype == "float32"
    others = [
        described(torch.float32),
        described(version="0.31.2"),
        described(weights="w2"),
        described(vllm_revision="2"),
    ]
    keys = {KeyMaker(teacher).key(IDS, "float16") for teacher in (first, *others)}
    assert len(keys) == 1 + len(others)
    assert KeyMaker(described()).key(IDS, "float16") in keys
