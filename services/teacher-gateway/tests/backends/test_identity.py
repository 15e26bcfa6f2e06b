"""When a server is compared with the one that was met, whatever kind it is."""

import asyncio

import pytest

from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.backends.identity import Identity
from latentforge.gateway.backends.upstream import Api

API = Api("test", "http://127.0.0.1:1", "TEST_URL", None, "TEST_KEY", 1, 1, 1, 1.0)


class Compared(Identity):
    """Counts comparisons; they wait for ``may_end``, and fail with ``failure``."""

    def __init__(self) -> None:
        super().__init__(API)
        self.count = 0
        self.may_end = asyncio.Event()
        self.failure: BackendError | None = None
        self._begin()

    async def _compare(self) -> None:
        self.count += 1
        await self.may_end.wait()
        if self.failure is not None:
            raise self.failure

    def another(self) -> BackendError:
        return self._changed("it is new")


async def answering(failure: BackendError | None = None) -> str:
    if failure is not None:
        raise failure
    return "rows"


async def test_all_who_wait_share_one_comparison_and_its_failure() -> None:
    identity = Compared()
    identity.doubt()
    identity.failure = BackendError("did not answer", FailureKind.TOO_SLOW)
    waiting = [asyncio.create_task(identity.confirm()) for _ in range(16)]
    await asyncio.sleep(0)
    # Who leaves takes it from nobody.
    waiting[0].cancel()
    await asyncio.sleep(0)
    identity.may_end.set()
    left, *failed = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(left, asyncio.CancelledError)
    assert [str(error) for error in failed] == ["did not answer"] * 15
    assert identity.count == 1
    # The doubt stays until a comparison has succeeded.
    identity.failure = None
    await identity.confirm()
    await identity.confirm()
    assert identity.count == 2


@pytest.mark.parametrize(
    ("kind", "believed"), [(FailureKind.REFUSED, False), (FailureKind.BROKEN, False), (FailureKind.GONE, True)]
)
async def test_what_only_a_server_can_say_is_not_believed_of_another(kind: FailureKind, believed: bool) -> None:
    identity = Compared()
    identity.may_end.set()
    refusal = BackendError("answers 400", kind)
    with pytest.raises(BackendError, match="answers 400"):
        await identity.believed(answering(refusal))
    assert identity.count == 0
    identity.doubt()
    identity.failure = identity.another()
    with pytest.raises(BackendError) as caught:
        await identity.believed(answering(refusal))
    assert caught.value.kind is (kind if believed else FailureKind.CHANGED)
    with pytest.raises(BackendError, match=r"TEST_URL=http://127\.0\.0\.1:1 is another teacher .* it is new"):
        await identity.believed(answering())
    identity.failure = None
    assert await identity.believed(answering()) == "rows"
