"""What callers notice of a cache that breaks: nothing but time, if all is well.

Each fault has a store and a gateway of its own, and begins and ends while clients ask. The store has half of what they
ask for. Every answer is compared with that of a gateway without a cache.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.gateway.broken_stores import FAULTS, StoreFault
from benchmarks.gateway.clients import gateway_stubs
from benchmarks.gateway.servers import Server, Servers
from benchmarks.gateway.workload import Ids
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.teacher_client.sync_client import SyncTeacherClient
from latentforge.teacher_client.wire import rows_from_proto

_TOP_K = 20
_SEEN = 400
# A unit in the last place of a float16 log-probability between -16 and -32, and a little.
_APART = 0.02
_CALL_SECONDS = 30.0
# Of a client between two calls: so many calls last as long as a store that is not asked after a fault.
_PAUSE_SECONDS = 0.03


@dataclass(frozen=True)
class FaultsPlan:
    """How long clients ask before, during and after a fault: so many calls in each, and seconds at the least.

    Attributes:
        during_seconds, after_seconds: a store that failed is left alone for 10 s.
    """

    clients: int = 8
    calls: int = 1000
    during_seconds: float = 5.0
    after_seconds: float = 11.0


@dataclass
class FaultCount:
    """What became of the calls. ``wrong`` ones were answered, with other rows than without a cache."""

    calls: int = 0
    failed: int = 0
    wrong: int = 0
    # From the store, of the calls before, during and after the fault.
    hits: list[int] = field(default_factory=lambda: [0, 0, 0])
    asked: list[int] = field(default_factory=lambda: [0, 0, 0])
    errors: Counter[str] = field(default_factory=Counter)
    # What the gateway says that the store did: reads and writes that failed, rows not kept, entries dropped as corrupt.
    store: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CallUnderFault:
    """Of a call begun before (0), during (1) or after (2) the fault; ``response`` is None where it failed."""

    phase: int
    ids: tuple[int, ...]
    response: pb.ScoreResponse | None
    error: str = ""


def measure_faults(
    plan: FaultsPlan, names: Sequence[str], servers: Servers, model: Path, on_figure: Callable[[str, str], None]
) -> dict[str, FaultCount]:
    """What each of FAULTS cost, begun and ended under load."""
    counts = {}
    plain = servers.start_embedded_gateway("gateway-without-cache", model, "none")
    for name in names:
        with ExitStack() as stack:
            own, gateway_name = servers.within(stack), f"gateway-{name}"
            fault = FAULTS[name](own, stack, own.sqlite_file(gateway_name))
            # With rows in its memory, the gateway would not ask the store for what it gave before.
            gateway = own.start_embedded_gateway(gateway_name, model, fault.url, cache_memory_mb="0")
            answers = asyncio.run(_under_load(gateway, fault, plan, list(FAULTS).index(name)))
            with SyncTeacherClient(gateway.target) as client:
                said = client.cache_stats()
        counts[name] = counted(answers, _rows_of(plain, {answer.ids for answer in answers}))
        counts[name].store = {what: getattr(said, what) for what in ("errors", "dropped_writes", "corrupt_entries")}
        on_figure(name, f"{counts[name].failed} failed and {counts[name].wrong} wrong of {counts[name].calls} calls")
    return counts


def _rows_of(gateway: Server, sequences: set[tuple[int, ...]]) -> dict[tuple[int, ...], SparseRows]:
    wanted = list(sequences)
    with SyncTeacherClient(gateway.target) as client:
        scored = {wanted[answer.index]: answer.rows for answer in client.score_batch(wanted, _TOP_K)}
    return {ids: rows for ids, rows in scored.items() if rows is not None}


def counted(answers: Sequence[CallUnderFault], expected: Mapping[tuple[int, ...], SparseRows]) -> FaultCount:
    """Holds answers against the rows that their ids have.

    Raises:
        KeyError: there are none for some ids.
    """
    count = FaultCount()
    for answer in answers:
        count.calls += 1
        count.asked[answer.phase] += 1
        if answer.response is None:
            count.failed += 1
            count.errors[answer.error] += 1
            continue
        count.hits[answer.phase] += answer.response.provenance.cache_hit
        count.wrong += not same_rows(rows_from_proto(answer.response.rows), expected[answer.ids])
    return count


def same_rows(ours: SparseRows, theirs: SparseRows) -> bool:
    """Whether two scorings of a sequence differ by rounding alone, by which the least probable of a row may change."""
    if ours.ids.shape != theirs.ids.shape or ours.first_position != theirs.first_position:
        return False
    if not np.allclose(ours.realised_logprobs, theirs.realised_logprobs, rtol=0, atol=_APART):
        return False
    for a, b, its, others in zip(ours.ids, theirs.ids, ours.logprobs, theirs.logprobs, strict=True):
        one, other = (
            dict(zip(ids.tolist(), map(float, values), strict=True)) for ids, values in ((a, its), (b, others))
        )
        least = min(*one.values(), *other.values())
        if any(abs(one.get(key, least) - other.get(key, least)) > _APART for key in one.keys() | other.keys()):
            return False
    return True


async def _under_load(gateway: Server, fault: StoreFault, plan: FaultsPlan, seed: int) -> list[CallUnderFault]:
    random = np.random.default_rng(seed)
    seen = [_drawn(random) for _ in range(min(_SEEN, plan.calls))]
    answers: list[CallUnderFault] = []
    phase, asking = 0, True
    async with gateway_stubs(gateway.target, plan.clients) as (stubs, fingerprint):

        async def ask(stub: Any, ids: Ids) -> None:
            asked_in = phase
            request = pb.ScoreRequest(tokenizer_fingerprint=fingerprint, token_ids=ids, top_k=_TOP_K)
            try:
                answers.append(CallUnderFault(asked_in, tuple(ids), await stub.Score(request, timeout=_CALL_SECONDS)))
            except grpc.aio.AioRpcError as error:
                answers.append(CallUnderFault(asked_in, tuple(ids), None, f"{error.code().name}: {error.details()}"))

        async def client(stub: Any) -> None:
            while asking:
                await ask(stub, seen[random.integers(len(seen))] if random.random() < 0.5 else _drawn(random))
                await asyncio.sleep(_PAUSE_SECONDS)

        async def have_asked(calls: int, seconds: float) -> None:
            enough, until = len(answers) + calls, time.perf_counter() + seconds
            while len(answers) < enough or time.perf_counter() < until:  # noqa: ASYNC110 - calls are counted
                await asyncio.sleep(0.02)

        await asyncio.gather(*(ask(stubs[i % len(stubs)], ids) for i, ids in enumerate(seen)))
        clients = [asyncio.create_task(client(stub)) for stub in stubs]
        await have_asked(plan.calls, 0.0)
        phase = 1
        await asyncio.to_thread(fault.begin, gateway)
        await have_asked(plan.calls, plan.during_seconds)
        await asyncio.to_thread(fault.end, gateway)
        phase = 2
        await have_asked(plan.calls, plan.after_seconds)
        asking = False
        await asyncio.gather(*clients)
    return answers


def _drawn(random: np.random.Generator) -> Ids:
    ids: Ids = random.integers(0, 4096, random.integers(8, 17)).tolist()
    return ids
