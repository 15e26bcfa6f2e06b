from pathlib import Path

import pytest
import torch

from latentforge.snapshots.registry import Registry
from tests.tiny_checkpoints import checkpoints, one_thread, publish, tokenizer_json

__all__ = ["checkpoints", "one_thread", "publish", "registry", "tokenizer_json"]


@pytest.fixture
def registry(checkpoints: Path) -> Registry:
    return Registry(checkpoints, None, torch.device("cpu"))


def served(registry: Registry) -> str | None:
    registry.refresh()
    return registry.current.id if registry.current else None
