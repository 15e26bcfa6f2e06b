import asyncio
from collections.abc import Awaitable, Callable

from latentforge.gateway.scoring.token_budget import TokenBudget

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


class Holder:
    """Takes tokens and keeps them until told."""

    def __init__(self, budget: TokenBudget, tokens: int) -> None:
        self.entered = False
        self.leave = asyncio.Event()
        self.task = asyncio.create_task(self._hold(budget, tokens))

    async def _hold(self, budget: TokenBudget, tokens: int) -> None:
        async with budget.take(tokens):
            self.entered = True
            await self.leave.wait()


async def test_holders_enter_in_order_while_they_fit(eventually: Eventually) -> None:
    budget = TokenBudget(10)
    first, second, third = (Holder(budget, n) for n in (6, 5, 1))
    await eventually(lambda: first.entered)
    await asyncio.sleep(0)
    assert not second.entered
    # The third would fit, but whoever came first goes first.
    assert not third.entered
    first.leave.set()
    await eventually(lambda: second.entered and third.entered)
    for holder in (second, third):
        holder.leave.set()
        await holder.task


async def test_more_than_the_limit_enters_alone(eventually: Eventually) -> None:
    budget = TokenBudget(10)
    small = Holder(budget, 1)
    large = Holder(budget, 100)
    await eventually(lambda: small.entered)
    assert not large.entered
    small.leave.set()
    await eventually(lambda: large.entered)
    large.leave.set()
    await large.task


async def test_a_cancelled_holder_leaves_no_trace(eventually: Eventually) -> None:
    budget = TokenBudget(10)
    first, second, third = (Holder(budget, n) for n in (10, 10, 10))
    await eventually(lambda: first.entered)
    second.task.cancel()
    await asyncio.gather(second.task, return_exceptions=True)
    first.task.cancel()
    await eventually(lambda: third.entered)
    assert not second.entered
    third.leave.set()
    await third.task


async def test_a_turn_that_comes_with_the_cancellation_is_given_back(eventually: Eventually) -> None:
    budget = TokenBudget(10)
    first, second = Holder(budget, 10), Holder(budget, 10)
    await eventually(lambda: first.entered)
    first.leave.set()
    await first.task
    # Its turn has come, but it did not run yet.
    second.task.cancel()
    await asyncio.gather(second.task, return_exceptions=True)
    third = Holder(budget, 10)
    await eventually(lambda: third.entered)
    third.leave.set()
    await third.task
