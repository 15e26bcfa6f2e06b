from collections.abc import Callable

import pytest
import torch

from latentforge.core.manifest import Golden
from latentforge.model.finite import finite_logits
from latentforge.model.golden import TOLERANCE, check_golden, golden_of
from latentforge.model.latent_model import LatentModel

MakeModel = Callable[..., LatentModel]
IDS = torch.randint(2, 64, (43,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(params=["deterministic", "energy"])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> LatentModel:
    return make_model(head=request.param)


def test_log_probabilities_and_draws_are_the_models_own(model: LatentModel) -> None:
    golden = golden_of(model, "a text", IDS, seed=5)
    check_golden(model, golden)
    probabilities = finite_logits(model, IDS).double().softmax(1)
    for at, (token_id, drawn, uniform) in enumerate(
        zip(golden.token_ids, golden.drawn_ids, golden.uniforms, strict=True)
    ):
        assert golden.logprobs[at] == pytest.approx(float(probabilities[at, token_id].log()), abs=1e-5)
        # The slow way: ids in order until their mass exceeds the number.
        mass, expected = 0.0, 0
        for expected in range(64):
            mass += float(probabilities[at, expected])
            if mass > uniform:
                break
        assert drawn == expected
    assert len(set(golden.drawn_ids)) > 10
    assert golden_of(model, "a text", IDS, seed=5) == golden
    assert golden_of(model, "a text", IDS, seed=6).drawn_ids != golden.drawn_ids


def test_the_first_logits_do_not_depend_on_how_many_pads_stand_before_them(model: LatentModel) -> None:
    # 43 tokens of chunks of 4: one pad stands before the first token, and its logits are no token's.
    assert finite_logits(model, IDS).shape == (43, 64)
    assert finite_logits(model, IDS[:1]).shape == (1, 64)


def shifted(golden: Golden, field: str, at: int, by: float) -> Golden:
    values = list(getattr(golden, field))
    values[at] += by
    return golden.model_copy(update={field: tuple(values)})


@pytest.mark.parametrize("at", [0, 31, 32, 42])
def test_what_is_beyond_the_tolerance_anywhere_is_refused_and_rounding_is_not(model: LatentModel, at: int) -> None:
    golden = golden_of(model, "a text", IDS)
    for sign in (-1, 1):
        check_golden(model, shifted(golden, "logprobs", at, sign * 0.9 * TOLERANCE))
        with pytest.raises(ValueError, match=f"token {at} of the golden text has a log probability of"):
            check_golden(model, shifted(golden, "logprobs", at, sign * 1.1 * TOLERANCE))


def test_a_number_on_the_border_of_two_ids_may_draw_either(model: LatentModel) -> None:
    golden = golden_of(model, "a text", IDS)
    probabilities = finite_logits(model, IDS).double().softmax(1)
    at = next(i for i, drawn in enumerate(golden.drawn_ids) if 2 < drawn < 60)
    drawn = golden.drawn_ids[at]
    border = float(probabilities[at].cumsum(0)[drawn])
    for off, fits in ((-0.9, True), (0.9, True), (1.1, False)):
        moved = shifted(golden, "uniforms", at, border + off * TOLERANCE - golden.uniforms[at])
        if fits:
            check_golden(model, moved)
        else:
            with pytest.raises(ValueError, match=f"at token {at} of the golden text .* does not draw id {drawn}"):
                check_golden(model, moved)


def test_a_model_that_is_not_finite_neither_makes_nor_passes_one(model: LatentModel) -> None:
    golden = golden_of(model, "a text", IDS)
    with torch.no_grad():
        model.student.bias[7] = float("nan")
    with pytest.raises(ValueError, match=r"the weights student\.bias are not finite"):
        golden_of(model, "a text", IDS)
    with pytest.raises(ValueError, match=r"the weights student\.bias are not finite"):
        check_golden(model, golden)


def test_what_is_no_text_of_the_models_is_refused(model: LatentModel) -> None:
    golden = golden_of(model, "a text", IDS)
    with pytest.raises(ValueError, match="has id 64, but the vocabulary only 64 ids"):
        check_golden(model, golden.model_copy(update={"drawn_ids": (64, *golden.drawn_ids[1:])}))
    longer = {name: getattr(golden, name) * 2 for name in ("token_ids", "logprobs", "uniforms", "drawn_ids")}
    with pytest.raises(ValueError, match="has 86 tokens, but the student reads 64"):
        check_golden(model, golden.model_copy(update=longer))
