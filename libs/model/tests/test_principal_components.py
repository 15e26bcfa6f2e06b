import pytest
import torch

from latentforge.model.principal_components import principal_components


@pytest.fixture
def table(rng: torch.Generator) -> torch.Tensor:
    return torch.randn(50, 12, generator=rng) @ torch.randn(12, 12, generator=rng) + 3


@pytest.mark.parametrize("width", [3, 12])
def test_they_are_those_of_the_singular_value_decomposition(table: torch.Tensor, width: int) -> None:
    found = principal_components(table, width)
    mean = table.mean(0)
    u, s, vh = torch.linalg.svd(table - mean, full_matrices=False)
    best = u[:, :width] * s[:width] @ vh[:width] + mean
    torch.testing.assert_close(found.coordinates @ found.back + found.mean, best, rtol=1e-4, atol=1e-4)
    # Each column is U·√S, up to its sign and one number.
    wanted = u[:, :width] * s[:width].sqrt()
    wanted = wanted / wanted.square().mean().sqrt()
    torch.testing.assert_close(found.coordinates.abs(), wanted.abs(), rtol=1e-3, atol=1e-3)


def test_at_the_tables_width_nothing_is_lost(table: torch.Tensor) -> None:
    found = principal_components(table, 12)
    torch.testing.assert_close(found.coordinates @ found.back + found.mean, table, rtol=1e-4, atol=1e-4)


def test_coordinates_are_of_order_one(table: torch.Tensor) -> None:
    coordinates = principal_components(100 * table, 5).coordinates
    torch.testing.assert_close(coordinates.mean(0), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(coordinates.square().mean(), torch.tensor(1.0))


def test_a_table_of_a_lower_rank_gives_finite_numbers(rng: torch.Generator) -> None:
    table = torch.randn(20, 2, generator=rng) @ torch.randn(2, 6, generator=rng)
    found = principal_components(table, 5)
    assert found.coordinates.isfinite().all()
    torch.testing.assert_close(found.coordinates @ found.back + found.mean, table, rtol=1e-3, atol=1e-4)


def test_more_than_the_table_has_are_refused(table: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[50, 12\] has no 13 principal components; take 12"):
        principal_components(table, 13)
