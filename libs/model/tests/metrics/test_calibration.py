import math

import pytest
import torch

from latentforge.model.metrics.calibration import expected_calibration_error


def test_matches_a_loop_over_bins() -> None:
    rng = torch.Generator().manual_seed(0)
    confidence = torch.rand(5000, generator=rng, dtype=torch.float64)
    correct = torch.rand(5000, generator=rng) < 0.5
    wanted = 0.0
    for b in range(15):
        inside = [i for i, c in enumerate(confidence.tolist()) if b / 15 < c <= (b + 1) / 15]
        accuracy = sum(correct[i].item() for i in inside) / len(inside)
        mean = math.fsum(confidence[i].item() for i in inside) / len(inside)
        wanted += len(inside) / 5000 * abs(accuracy - mean)
    assert expected_calibration_error(confidence, correct) == pytest.approx(wanted, abs=1e-12)


def test_a_calibrated_model_is_within_sampling_noise() -> None:
    rng = torch.Generator().manual_seed(1)
    confidence = torch.rand(150_000, generator=rng)
    correct = torch.rand(150_000, generator=rng) < confidence
    assert expected_calibration_error(confidence, correct) < 0.5 * math.sqrt(15 / 150_000)


def test_shares_that_equal_the_confidence_give_zero() -> None:
    confidence = torch.tensor([0.25] * 4 + [0.75] * 4)
    correct = torch.tensor([True, False, False, False, True, True, True, False])
    assert expected_calibration_error(confidence, correct) == 0


def test_constant_overconfidence_is_exact() -> None:
    confidence = torch.full((1000,), 0.875)
    correct = torch.arange(1000) < 625
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.25, abs=1e-15)


def test_errors_of_two_bins_do_not_cancel_and_those_inside_one_do() -> None:
    correct = torch.tensor([True, False])
    assert expected_calibration_error(torch.tensor([0.25, 0.75]), correct) == pytest.approx(0.75)
    assert expected_calibration_error(torch.tensor([0.25, 0.75]), correct, bins=1) == 0


def test_zero_and_one_are_in_the_outer_bins() -> None:
    assert expected_calibration_error(torch.tensor([0.0, 1.0]), torch.tensor([False, True])) == 0
    assert expected_calibration_error(torch.tensor([0.0, 1.0]), torch.tensor([True, False])) == 1
    # 0 shares (0, 1/15] and 1 shares (14/15, 1], where opposite errors cancel.
    assert expected_calibration_error(torch.tensor([0.0, 0.0625]), torch.tensor([False, True])) == pytest.approx(
        0.46875
    )
    assert expected_calibration_error(torch.tensor([1.0, 0.9375]), torch.tensor([False, True])) == pytest.approx(
        0.46875
    )


def test_an_upper_edge_is_inside_its_bin() -> None:
    correct = torch.tensor([True, False])
    assert expected_calibration_error(torch.tensor([0.5, 0.25]), correct, bins=2) == pytest.approx(0.125)
    assert expected_calibration_error(torch.tensor([0.5, 0.75]), correct, bins=2) == pytest.approx(0.625)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"confidence must be in \[0, 1\]"):
        expected_calibration_error(torch.tensor([0.5, bad]), torch.tensor([True, True]))


def test_no_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="confidence is empty"):
        expected_calibration_error(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
