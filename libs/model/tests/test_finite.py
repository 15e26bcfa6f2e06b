from collections.abc import Callable

import pytest
import torch

from latentforge.model.finite import check_finite, finite_logits
from latentforge.model.latent_model import LatentModel

MakeModel = Callable[..., LatentModel]


@pytest.mark.parametrize("token_ids", [[5], list(range(2, 20))])
@pytest.mark.parametrize("head", ["deterministic", "energy"])
def test_a_student_with_numbers_passes_and_no_random_number_is_spent(
    make_model: MakeModel, head: str, token_ids: list[int]
) -> None:
    model = make_model(head=head)
    before = torch.get_rng_state()
    check_finite(model)
    assert finite_logits(model, token_ids).shape == (len(token_ids), 64)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_weight_that_is_no_number_is_named(make_model: MakeModel, value: float) -> None:
    model = make_model()
    with torch.no_grad():
        model.student.embedding.weight[63, 0] = value
    with pytest.raises(ValueError, match=r"the weights student\.embedding\.weight are not finite"):
        check_finite(model)


def test_logits_that_overflow_are_found_though_every_weight_is_a_number(make_model: MakeModel) -> None:
    model = make_model()
    with torch.no_grad():
        model.student.bias.fill_(3e38)
        model.output_weight.fill_(3e38)
    with pytest.raises(ValueError, match="the logits of a text of 2 tokens are not finite"):
        finite_logits(model, [2, 3])
