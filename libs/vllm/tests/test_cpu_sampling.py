"""What spreads a request's numbers over its drafted tokens, where vLLM's own does not."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from latentforge.vllm.cpu_sampling import expanded, mend_sampling


@pytest.fixture
def sampler() -> ModuleType:
    """What stands where vLLM's sampler is, which is not here."""
    return sys.modules["vllm.v1.sample.rejection_sampler"]


def test_each_request_has_its_number_for_each_of_its_tokens() -> None:
    found = expanded(torch.tensor([0.5, 2.0, 0.0]), torch.tensor([2, 2, 5], dtype=torch.int32), 5)
    assert found.tolist() == [0.5, 0.5, 0.0, 0.0, 0.0]
    assert found.dtype == torch.float32
    found = expanded(torch.tensor([0, 7], dtype=torch.int32), torch.tensor([1, 3]), 3, replace_from=0, replace_to=1)
    assert found.tolist() == [1, 7, 7]
    assert found.dtype == torch.int32


def test_what_is_wrong_is_replaced(sampler: Any) -> None:
    sampler.expand_batch_to_tokens = lambda x, ends, num, *rest: torch.empty(num)
    assert mend_sampling()
    assert sampler.expand_batch_to_tokens is expanded
    assert not mend_sampling()


def test_what_was_right_by_chance_is_replaced_too(sampler: Any) -> None:
    sampler.expand_batch_to_tokens = lambda x, ends, num, *rest: torch.tensor([0.25] * 2 + [0.75] * 3)
    assert mend_sampling()


def test_what_is_sound_stays(sampler: Any) -> None:
    def own(x: torch.Tensor, ends: torch.Tensor, num: int, *rest: int) -> torch.Tensor:
        return expanded(x, ends, num)

    sampler.expand_batch_to_tokens = own
    assert not mend_sampling()
    assert sampler.expand_batch_to_tokens is own
