import pytest
import torch

from latentforge.model.sampling.inversion import BlockInversion, invert
from latentforge.model.sampling.text import BELOW_ONE

UNIFORMS = [0.0, 1e-18, 0.1, 0.5, 0.77, 1 - 1e-9, BELOW_ONE]


@pytest.mark.parametrize("n", [1, 100, 901, 5000, 8192, 12_801])
def test_both_find_the_entry_in_which_the_share_lies(n: int) -> None:
    """Whole numbers, whose sums are exact, with many that are 0."""
    generator = torch.Generator().manual_seed(n)
    mass = torch.randint(9, (50, n), generator=generator).float() * (torch.rand(50, n, generator=generator) < 0.3)
    mass[:, n // 2] = 1
    inversion = BlockInversion(mass)
    for u in [*UNIFORMS, *torch.rand(10, dtype=torch.float64).mul(BELOW_ONE).tolist()]:
        drawn = inversion.draw([u] * 50)
        found, total = invert(mass, torch.full((50,), u, dtype=torch.float64))
        assert total.tolist() == inversion.total.tolist() == mass.double().sum(1).tolist()
        for row, token, other in zip(mass.double(), drawn, found.tolist(), strict=True):
            assert row[token] > 0
            share = u * float(row.sum())
            assert float(row[:token].sum()) <= share + 1e-9
            assert share < float(row[: token + 1].sum()) + 1e-9
            assert token == other or abs(share - round(share)) < 1e-9


@pytest.mark.parametrize("n", [1000, 8192, 8200])
def test_the_first_and_last_random_numbers_draw_entries_that_have_mass(n: int) -> None:
    mass = torch.zeros(1, n)
    mass[0, [300, 301, 700]] = torch.tensor([1.0, 1e-30, 1e-30])
    inversion = BlockInversion(mass)
    for u in UNIFORMS:
        wanted = {300} if u < 1 - 1e-8 else {300, 301, 700}
        assert inversion.draw([u])[0] in wanted
        assert int(invert(mass, torch.tensor([u], dtype=torch.float64))[0]) in wanted


@pytest.mark.parametrize("n", [1000, 8200])
@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_where_there_is_no_mass_some_entry_is_found(n: int, value: float) -> None:
    mass = torch.full((1, n), value)
    inversion = BlockInversion(mass)
    (token,) = inversion.draw([0.5])
    found, total = invert(mass, torch.tensor([0.5], dtype=torch.float64))
    assert 0 <= token < n
    assert 0 <= int(found) < n
    assert not total > 0
    assert not inversion.total[0] > 0


def test_mass_is_read_when_it_is_drawn_from() -> None:
    mass = torch.zeros(1, 5000)
    inversion = BlockInversion(mass)
    for token in (7, 4999, 128):
        mass.zero_()[0, token] = 1
        assert inversion.draw([0.5]) == [token]
