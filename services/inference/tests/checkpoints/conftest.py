from pathlib import Path

import pytest
import torch

from latentforge.inference.checkpoints.registry import Registry


@pytest.fixture
def registry(checkpoints: Path) -> Registry:
    return Registry(checkpoints, None, torch.device("cpu"))


def served(registry: Registry) -> str | None:
    registry.refresh()
    return registry.current.id if registry.current else None
