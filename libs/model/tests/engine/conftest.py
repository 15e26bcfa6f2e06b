from collections.abc import Callable
from typing import Any

import pytest

from latentforge.model.latent_model import LatentModel
from tests.serial_decoding import SerialDecoding


@pytest.fixture
def serial(make_model: Callable[..., LatentModel]) -> Callable[..., SerialDecoding]:
    """Makes the slow reference of a tiny model; keywords change the model."""

    def make(num_slots: int = 4, **changes: Any) -> SerialDecoding:
        return SerialDecoding(make_model(**changes), num_slots)

    return make
