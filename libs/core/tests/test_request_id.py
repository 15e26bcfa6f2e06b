import pytest

from latentforge.core.request_id import request_id_of


@pytest.mark.parametrize("given", ["r-1", "a" * 128, "00-4bf9/2f35:77b3+4da6=a3._"])
def test_a_callers_id_is_kept(given: str) -> None:
    assert request_id_of(given) == given


@pytest.mark.parametrize("given", ["", "a" * 129, "two words", "line\nbreak", "r-1\n", "żółć", 'a"b', "$(id)", "a;b"])
def test_one_that_is_none_or_unsafe_is_replaced(given: str) -> None:
    made = request_id_of(given)
    assert len(made) == 32
    assert made != request_id_of(given)
