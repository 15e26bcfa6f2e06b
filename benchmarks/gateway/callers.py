"""What clients of one gateway cost each other: batches across calls, turns, large texts, and more clients of a cache.

The teacher is the embedded one, in the gateway's own process.
"""

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.benchmark_results import Bars
from benchmarks.gateway.broken_stores import FAULTS
from benchmarks.gateway.clients import Clients, GatewayServer, ScoringJob, gateway_stubs
from benchmarks.gateway.faults import FaultsPlan, measure_faults
from benchmarks.gateway.servers import Servers
from benchmarks.gateway.workload import Ids
from latentforge.core.results import Result
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1.teacher_pb2_grpc import TeacherServiceStub
from latentforge.teacher_client.sync_client import SyncTeacherClient

BARS = Bars(
    {"batched_clients": 1.3, "fair_wait": 3.0, "hostile": 100.0, "cached_clients": 2.5, "faults": 0.0},
    at_most=("batched_clients", "fair_wait", "hostile", "faults"),
)
NOTES = """\
batched_clients: wall time of 32 clients with a connection each, who ask for 6 sequences of 64 tokens one after another,
  over that of one ScoreBatch of the same; no cache.
fair_wait: median wait of an 8-token Score on a connection of its own while another client's ScoreBatch of 400 x 256
  tokens is computed, over the time of one batch of MAX_BATCH_TOKENS alone; low and high bound the waits.
hostile: 99th percentile in ms of cached 64-token Scores, one after another, while 4 processes send Tokenize requests of
  60 MB again and again; measured.hostile_without is the same without them.
cached_clients: cached 64-token Scores per second of 8 client processes over 1, on two gateway processes before one
  Redis. Clients and gateways share the machine's cores.
faults: calls that failed, or were answered with other rows than a gateway without a cache gives, over the faults of
  measured.faults, each with a gateway and a store of its own and begun and ended while 8 clients ask for sequences of 8
  to 16 tokens, half of which the store has; CACHE_MEMORY_MB=0. hits and asked are of the calls begun before, during and
  after the fault.
""".splitlines()
_TOP_K = 20
_SHORT, _LONG = 64, 256
_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class CallersPlan:
    """How much is asked for."""

    repeats: int = 5
    clients: int = 32
    scores: int = 6
    long_sequences: int = 400
    hostile_clients: int = 4
    hostile_bytes: int = 60_000_000
    seconds: float = 10.0
    cached_sequences: int = 64
    cached_passes: int = 40
    faults: FaultsPlan = field(default_factory=FaultsPlan)


QUICK = CallersPlan(
    repeats=1, clients=4, long_sequences=24, seconds=1.0, cached_passes=2, faults=FaultsPlan(4, 40, 0.5, 0.5)
)


class CallersBench:
    """Measures each figure on gateways of its own.

    Args:
        sequences: of 64 tokens at least, all different.
        on_figure: called after every repeat with what was measured and its figure.
    """

    def __init__(
        self,
        plan: CallersPlan,
        servers: Servers,
        model: Path,
        sequences: Sequence[Ids],
        on_figure: Callable[[str, str], None] = lambda what, figure: None,
    ) -> None:
        self._plan, self._servers, self._model = plan, servers, model
        self._sequences = sequences
        self._on_figure = on_figure
        self._random = np.random.default_rng(0)
        self.measured: dict[str, Any] = {}

    def measure(self, name: str) -> Result:
        """One of the ids of BARS."""
        found: Result = getattr(self, f"_{name}")()
        return found

    def _batched_clients(self) -> Result:
        plan = self._plan
        gateway = self._servers.start_embedded_gateway("gateway-batched", self._model, "none")
        count = plan.clients * plan.scores
        ids = [ids[:_SHORT] for ids in self._sequences[:count]]
        ratios = []

        async def measure() -> float:
            async with gateway_stubs(gateway.target, plan.clients + 1) as (stubs, fingerprint):

                async def one_after_another(stub: Any, share: Sequence[Ids]) -> None:
                    for each in share:
                        await stub.Score(_score(fingerprint, each))

                # The calls open the connections, and no client begins before the others can.
                await asyncio.gather(*(stub.GetTeacher(pb.GetTeacherRequest()) for stub in stubs))
                started = time.perf_counter()
                shares = [ids[client :: plan.clients] for client in range(plan.clients)]
                await asyncio.gather(*map(one_after_another, stubs, shares))
                apart = time.perf_counter() - started
                started = time.perf_counter()
                assert await _read(stubs[-1].ScoreBatch(_batch(fingerprint, ids))) == count
                return apart / (time.perf_counter() - started)

        for _ in range(plan.repeats):
            ratios.append(asyncio.run(measure()))
            self._on_figure("batched_clients", f"{ratios[-1]:.2f}")
        return self._result("batched_clients", "times as long", ratios)

    def _fair_wait(self) -> Result:
        gateway = self._servers.start_embedded_gateway("gateway-fair", self._model, "none")

        async def batch_seconds() -> float:
            async with gateway_stubs(gateway.target, 1) as ((stub,), fingerprint):
                taken = []
                for _ in range(1 + self._plan.repeats):
                    ids = self._drawn(_BATCH_TOKENS // _LONG, _LONG)
                    started = time.perf_counter()
                    await _read(stub.ScoreBatch(_batch(fingerprint, ids)))
                    taken.append(time.perf_counter() - started)
                return statistics.median(taken[1:])

        async def waits() -> list[float]:
            async with gateway_stubs(gateway.target, 2) as ((heavy, light), fingerprint):
                batch = heavy.ScoreBatch(_batch(fingerprint, self._drawn(self._plan.long_sequences, _LONG)))
                reading = asyncio.create_task(_read(batch))
                await batch.initial_metadata()
                taken = []
                while not reading.done():
                    (ids,) = self._drawn(1, 8)
                    started = time.perf_counter()
                    await light.Score(_score(fingerprint, ids))
                    taken.append(time.perf_counter() - started)
                    await asyncio.sleep(0.1)
                # The last may have found the batch already done.
                return taken[:-1] or taken

        one = asyncio.run(batch_seconds())
        ratios = [wait / one for wait in asyncio.run(waits())]
        self._on_figure("fair_wait", f"{statistics.median(ratios):.2f} batches of {one:.3f} s")
        return self._result("fair_wait", "batches", ratios)

    def _hostile(self) -> Result:
        plan = self._plan
        gateway = self._servers.start_embedded_gateway("gateway-hostile", self._model, "sqlite:///cache.sqlite")
        ids = [ids[:_SHORT] for ids in self._sequences[: plan.cached_sequences]]
        alone, beside = [], []
        with SyncTeacherClient(gateway.target) as client:
            assert all(answer.rows is not None for answer in client.score_batch(ids, _TOP_K))
            for _ in range(plan.repeats):
                alone.append(_p99_ms(client, ids, plan.seconds))
                with _hostile_clients(gateway.target, plan.hostile_clients, plan.hostile_bytes):
                    beside.append(_p99_ms(client, ids, plan.seconds))
                self._on_figure("hostile", f"{beside[-1]:.1f} ms, {alone[-1]:.1f} ms without")
        self.measured["hostile_without"] = alone
        return self._result("hostile", "ms", beside)

    def _cached_clients(self) -> Result:
        plan = self._plan
        redis = self._servers.start_redis()
        url = f"redis://127.0.0.1:{redis.port}/0"
        gateways = [self._servers.start_embedded_gateway(f"gateway-{i}", self._model, url) for i in (1, 2)]
        ids = [ids[:_SHORT] for ids in self._sequences[: plan.cached_sequences]]
        for gateway in gateways:
            with SyncTeacherClient(gateway.target) as client:
                assert all(answer.rows is not None for answer in client.score_batch(ids, _TOP_K))
        jobs = [
            ScoringJob(
                GatewayServer(gateways[i % 2].target, "packed", _TOP_K), [[each] for each in ids], plan.cached_passes
            )
            for i in range(8)
        ]
        one: list[float] = []
        eight: list[float] = []
        with Clients(len(jobs)) as clients:
            for _ in range(plan.repeats):
                for found, some in ((one, jobs[:1]), (eight, jobs)):
                    found.append(clients.run(some).positions_per_second / (_SHORT - 1))
                self._on_figure("cached_clients", f"{eight[-1]:,.0f} Scores/s, {one[-1]:,.0f} of one client")
        self.measured |= {"cached_clients": eight, "cached_one_client": one}
        ratios = [a / b for a, b in zip(eight, one, strict=True)]
        return Result.compared(
            "cached_clients",
            statistics.median(eight),
            "Scores/s",
            baseline="one client",
            baseline_value=statistics.median(one),
            low=min(ratios),
            high=max(ratios),
        )

    def _faults(self) -> Result:
        counts = measure_faults(self._plan.faults, list(FAULTS), self._servers, self._model, self._on_figure)
        self.measured["faults"] = {name: asdict(count) for name, count in counts.items()}
        bad = sum(count.failed + count.wrong for count in counts.values())
        return Result(id="faults", value=bad, unit=f"of {sum(count.calls for count in counts.values()):,} calls")

    def _drawn(self, count: int, length: int) -> list[Ids]:
        """Ids that nobody asked for before."""
        drawn: list[Ids] = self._random.integers(0, 4096, (count, length)).tolist()
        return drawn

    def _result(self, id: str, unit: str, values: Sequence[float]) -> Result:  # noqa: A002
        self.measured[id] = list(values)
        return Result(id=id, value=statistics.median(values), unit=unit, low=min(values), high=max(values))


async def _read(stream: Any) -> int:
    """How many answers it has."""
    answers = [answer async for answer in stream]
    assert not any(answer.HasField("error") for answer in answers)
    return len(answers)


def _score(fingerprint: str, ids: Ids) -> pb.ScoreRequest:
    return pb.ScoreRequest(tokenizer_fingerprint=fingerprint, token_ids=ids, top_k=_TOP_K)


def _batch(fingerprint: str, sequences: Sequence[Ids]) -> pb.ScoreBatchRequest:
    ids = [pb.TokenIds(ids=each) for each in sequences]
    return pb.ScoreBatchRequest(tokenizer_fingerprint=fingerprint, sequences=ids, top_k=_TOP_K)


def _p99_ms(client: SyncTeacherClient, sequences: Sequence[Ids], seconds: float) -> float:
    taken = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for ids in sequences:
            started = time.perf_counter()
            client.score(ids, _TOP_K)
            taken.append(1000 * (time.perf_counter() - started))
    return float(np.percentile(taken, 99))


@contextmanager
def _hostile_clients(target: str, count: int, num_bytes: int) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    begun, end = [context.Event() for _ in range(count)], context.Event()
    with ExitStack() as stack:
        for event in begun:
            process = context.Process(target=_send_texts, args=(target, num_bytes, event, end), daemon=True)
            process.start()
            stack.callback(process.kill)
        for event in begun:
            event.wait()
        yield
        end.set()


def _send_texts(target: str, num_bytes: int, begun: Event, end: Event) -> None:
    request = pb.TokenizeRequest(text="def f(x): return x + 1\n" * (num_bytes // 23))
    with grpc.insecure_channel(target, options=[("grpc.max_send_message_length", -1)]) as channel:
        stub: Any = TeacherServiceStub(channel)
        while not end.is_set():
            try:
                stub.Tokenize(request, timeout=60)
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED):
                    time.sleep(0.1)
            begun.set()
