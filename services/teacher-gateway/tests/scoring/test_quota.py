import pytest

from latentforge.gateway.backends.base import FailureKind
from latentforge.gateway.scoring.quota import QuotaError, TokenQuota


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def use(quota: TokenQuota, tokens: int, used: int | None = None) -> None:
    with quota.charged(tokens) as charge:
        charge.used += tokens if used is None else used


def test_a_minutes_tokens_are_there_at_once_and_come_back_in_a_minute(clock: Clock) -> None:
    quota = TokenQuota(600, clock)
    use(quota, 400)
    use(quota, 200)
    with pytest.raises(QuotaError, match=r"of 600 tokens a minute is used up; ask again in 0\.1 s") as caught:
        use(quota, 1)
    assert caught.value.kind is FailureKind.BUSY
    assert caught.value.retry_after == pytest.approx(0.1)
    clock.now += 0.1
    use(quota, 1)
    clock.now += 600
    use(quota, 600)
    with pytest.raises(QuotaError):
        use(quota, 1)


def test_what_was_not_used_is_given_back_also_after_a_failure(clock: Clock) -> None:
    quota = TokenQuota(600, clock)
    use(quota, 600, used=0)
    with pytest.raises(ZeroDivisionError), quota.charged(600):
        raise ZeroDivisionError
    use(quota, 600)
    with pytest.raises(QuotaError):
        use(quota, 1)


def test_a_call_under_way_counts_with_all_that_it_may_use(clock: Clock) -> None:
    quota = TokenQuota(600, clock)
    with quota.charged(600), pytest.raises(QuotaError):
        use(quota, 1)


def test_more_than_a_minutes_tokens_are_paid_for_afterwards(clock: Clock) -> None:
    quota = TokenQuota(600, clock)
    use(quota, 6000)
    for _ in range(9):
        with pytest.raises(QuotaError):
            use(quota, 1)
        clock.now += 60
    with pytest.raises(QuotaError) as caught:
        use(quota, 1)
    clock.now += caught.value.retry_after or 0
    use(quota, 1)
