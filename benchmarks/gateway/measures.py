"""The measurements: everything that is compared in turn on one machine, repeat after repeat."""

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx
import numpy as np
import orjson

from benchmarks.gateway.clients import Clients, CompletionsServer, GatewayServer, Load, ScoringJob
from benchmarks.gateway.clients import Server as AskedServer
from benchmarks.gateway.counting_proxy import CountingProxy
from benchmarks.gateway.litellm import vllm_requests
from benchmarks.gateway.servers import MODEL_NAME, Server
from benchmarks.gateway.workload import Ids, completions_request, dealt, grouped
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.teacher_client.sync_client import SyncTeacherClient

RowEncodingName = Literal["arrays", "packed"]
# A cached figure's name, and how rows travel. "redis" is a gateway that keeps nothing in its memory.
CACHED_WAYS: dict[str, RowEncodingName] = {"packed": "packed", "arrays": "arrays", "redis": "packed"}

# Rows over HTTP are JSON, several times as slow as packed: so many fewer passes are measured.
_HTTP_PASSES_LESS = 5

# Reads the answers, then times nothing but orjson.loads (and the freeing of what it made).
_ORJSON = """
import pathlib, sys, time, orjson
bodies = [pathlib.Path(path).read_bytes() for path in sys.argv[1:]]
orjson.loads(bodies[0])
started = time.process_time()
for body in bodies:
    orjson.loads(body)
print(time.process_time() - started)
"""


@dataclass(frozen=True)
class Plan:
    """How much is asked for.

    Attributes:
        sequences: different ones, of ``length`` tokens each.
        per_request: sequences of one request.
        cached_passes: how often the cached sequences are asked for in one repeat; LiteLLM is asked once.
        shared_sequences: asked for by each of ``shared_clients`` at the same time.
    """

    sequences: int = 64
    length: int = 512
    top_k: int = 20
    clients: int = 8
    per_request: int = 8
    repeats: int = 5
    cached_passes: int = 20
    shared_sequences: int = 8
    shared_clients: int = 4

    @property
    def loads(self) -> int:
        """Loads that :class:`Bench` puts on the servers, for a progress bar."""
        uncached = 2 * self.repeats + len(self.direct_shapes) - 1
        return 3 + uncached + 2 * self.repeats + 3 + 1 + (len(CACHED_WAYS) + 2) * self.repeats

    @property
    def direct_shapes(self) -> tuple[int, ...]:
        """Sequences of one request to vLLM: as many as of one to the gateway, and one."""
        return tuple(dict.fromkeys((self.per_request, 1)))


@dataclass(frozen=True)
class Wire:
    """Bytes per position that passed a counting proxy, the transport's framing in it, TCP's headers not."""

    sent: float
    received: float

    @property
    def total(self) -> float:
        return self.sent + self.received


@dataclass
class GatewayMeasures:
    """One figure per repeat; positions per second unless said otherwise.

    Attributes:
        direct: vLLM's, by the number of sequences of one request.
        gateway_cpu: CPU seconds of the gateway's process per million uncached positions.
        orjson_cpu: CPU seconds of orjson.loads per million positions.
        cached: by the names of CACHED_WAYS.
        cached_cpu: cached positions per CPU second of the gateway's process, by the same.
        wire: by what travelled.
        agreement: of the gateway's uncached rows with vLLM's.
        http_cached: of the gateway's own /v1/completions.
        cached_misses: sequences that a gateway had to have computed while cached ones were measured.
        litellm_misses: sequences that LiteLLM had to have computed meanwhile.
    """

    direct: dict[int, list[float]] = field(default_factory=dict)
    uncached: list[float] = field(default_factory=list)
    gateway_cpu: list[float] = field(default_factory=list)
    orjson_cpu: list[float] = field(default_factory=list)
    shared_direct: list[float] = field(default_factory=list)
    shared: list[float] = field(default_factory=list)
    litellm: list[float] = field(default_factory=list)
    cached: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in CACHED_WAYS})
    cached_cpu: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in CACHED_WAYS})
    wire: dict[str, Wire] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)
    http_cached: list[float] = field(default_factory=list)
    cached_misses: int = 0
    litellm_misses: int = 0

    @property
    def fastest_direct(self) -> int:
        """The number of sequences of one request with which vLLM was faster, where both were tried."""
        return max(self.direct, key=lambda size: (len(self.direct[size]), statistics.median(self.direct[size])))


class Bench:
    """Puts the loads of a plan on running servers.

    Args:
        on_load: called after every load with its name and its figure.
    """

    def __init__(
        self,
        plan: Plan,
        sequences: Sequence[Ids],
        clients: Clients,
        vocab_size: int,
        scratch: Path,
        on_load: Callable[[str, str], None] = lambda what, figure: None,
    ) -> None:
        self._plan = plan
        self._sequences = sequences
        self._clients = clients
        self._vocab_size = vocab_size
        self._scratch = scratch
        self._on_load = on_load
        self.measured = GatewayMeasures()

    def compare_answers(self, vllm: Server, gateway: Server) -> None:
        """Makes sure that vLLM and the gateway give the same answers, so that their speeds can be compared."""
        some = list(self._sequences[: self._plan.per_request])
        ours, theirs = (self._rows(s, some) for s in (self._of_gateway(gateway), self._of_vllm(vllm)))
        self.measured.agreement = agreement(ours, theirs)

    def measure_wire(self, vllm: Server, gateway: Server) -> None:
        """The cached gateway's bytes in both encodings beside vLLM's JSON; fills the gateway's cache."""
        asked: dict[str, tuple[Server, Callable[[int], AskedServer]]] = {
            "vllm": (vllm, lambda port: self._of_vllm(Server(vllm.child, port))),
            "arrays": (gateway, lambda port: self._of_gateway(Server(gateway.child, port), "arrays")),
            "packed": (gateway, lambda port: self._of_gateway(Server(gateway.child, port), "packed")),
        }
        for name, (server, through) in asked.items():
            with CountingProxy(server.port) as proxy:
                load = self._run(f"bytes, {name}", through(proxy.port), on_start=proxy.reset)
                self.measured.wire[name] = Wire(proxy.sent / load.positions, proxy.received / load.positions)

    def measure_uncached(self, vllm: Server, gateway: Server) -> None:
        measured = self.measured
        for repeat in range(self._plan.repeats):
            for ours in _alternating(repeat):
                if ours:
                    before = gateway.cpu_seconds()
                    load = self._run("uncached, gateway", self._of_gateway(gateway))
                    cpu = gateway.cpu_seconds() - before
                    measured.uncached.append(load.positions_per_second)
                    measured.gateway_cpu.append(1e6 * cpu / load.positions)
                    continue
                for size in (measured.fastest_direct,) if repeat else self._plan.direct_shapes:
                    load = self._run(f"uncached, vLLM, {size} a request", self._of_vllm(vllm), per_request=size)
                    measured.direct.setdefault(size, []).append(load.positions_per_second)

    def measure_shared(self, vllm: Server, gateway: Server) -> None:
        """Several clients ask for the same at the same time; the gateway has no cache, so sharing is all it has."""
        plan = self._plan
        shared = self._sequences[: plan.shared_sequences]
        for repeat in range(plan.repeats):
            for ours in _alternating(repeat):
                server = self._of_gateway(gateway) if ours else self._of_vllm(vllm)
                size = plan.per_request if ours else self.measured.fastest_direct
                load = self._clients.run([ScoringJob(server, grouped(shared, size))] * plan.shared_clients)
                (self.measured.shared if ours else self.measured.shared_direct).append(load.positions_per_second)
                self._on_load(f"shared, {'gateway' if ours else 'vLLM'}", _figure(load))

    def measure_orjson(self, vllm: Server, per_answer: int) -> None:
        """Times orjson.loads alone, over the answers that the gateway gets: ``per_answer`` sequences in each."""
        paths = []
        for number, ids in enumerate(grouped(self._sequences, per_answer)):
            request = completions_request(MODEL_NAME, ids, self._plan.top_k)
            answer = httpx.post(
                f"{vllm.url}/v1/completions", json=request, timeout=600, trust_env=False
            ).raise_for_status()
            path = self._scratch / f"answer{number}.json"
            path.write_bytes(answer.content)
            paths.append(str(path))
        self._on_load("recording answers", "")
        positions = sum(len(ids) - 1 for ids in self._sequences)
        for _ in range(self._plan.repeats):
            timed = subprocess.run([sys.executable, "-c", _ORJSON, *paths], capture_output=True, text=True, check=True)
            self.measured.orjson_cpu.append(1e6 * float(timed.stdout) / positions)
        self._on_load("orjson.loads", "")

    def measure_cached(
        self, gateway: Server, redis_only: Server, litellm: CompletionsServer | None, vllm: Server
    ) -> None:
        """Needs a filled cache of the gateways (:meth:`measure_wire`); fills LiteLLM's, if it has one for this.

        Args:
            gateway: with its cache as it is by default, in front of Redis.
            redis_only: with CACHE_MEMORY_MB=0, so that every answer is read from Redis.
        """
        if litellm is not None:
            self._run("filling LiteLLM's cache", litellm)
        # Kept apart from the rows for gRPC, whose log-probabilities are float16.
        self._run("filling the cache for HTTP", self._of_http(gateway))
        asked = {way: redis_only if way == "redis" else gateway for way in CACHED_WAYS}
        with ExitStack() as stack:
            watching = [stack.enter_context(SyncTeacherClient(server.target)) for server in (gateway, redis_only)]
            misses = sum(client.cache_stats().misses for client in watching)
            for repeat in range(self._plan.repeats):
                for ours in _alternating(repeat):
                    if ours:
                        for way, server in asked.items():
                            self._measure_cached(way, server)
                        passes = max(1, self._plan.cached_passes // _HTTP_PASSES_LESS)
                        load = self._run("cached, gateway, HTTP", self._of_http(gateway), passes=passes)
                        self.measured.http_cached.append(load.positions_per_second)
                    elif litellm is not None:
                        computed = vllm_requests(vllm.url)
                        self.measured.litellm.append(self._run("cached, LiteLLM", litellm).positions_per_second)
                        self.measured.litellm_misses += round(vllm_requests(vllm.url) - computed)
            self.measured.cached_misses = sum(client.cache_stats().misses for client in watching) - misses

    def _measure_cached(self, way: str, gateway: Server) -> None:
        before = gateway.cpu_seconds()
        load = self._run(
            f"cached, gateway, {way}",
            self._of_gateway(gateway, CACHED_WAYS[way]),
            passes=self._plan.cached_passes,
        )
        cpu = gateway.cpu_seconds() - before
        self.measured.cached[way].append(load.positions_per_second)
        self.measured.cached_cpu[way].append(load.positions / cpu)

    def _run(
        self,
        what: str,
        server: AskedServer,
        *,
        passes: int = 1,
        per_request: int | None = None,
        on_start: Callable[[], None] = lambda: None,
    ) -> Load:
        """Every client asks for its share."""
        shares = dealt(self._sequences, self._plan.clients)
        jobs = [ScoringJob(server, grouped(share, per_request or self._plan.per_request), passes) for share in shares]
        load = self._clients.run(jobs, on_start)
        self._on_load(what, _figure(load))
        return load

    def _rows(self, server: AskedServer, sequences: Sequence[Ids]) -> list[SparseRows]:
        with closing(server.connect()) as asker:
            return asker.ask(sequences)

    def _of_gateway(self, gateway: Server, encoding: RowEncodingName = "arrays") -> GatewayServer:
        return GatewayServer(gateway.target, encoding, self._plan.top_k)

    def _of_http(self, gateway: Server) -> CompletionsServer:
        return CompletionsServer(gateway.http_url, None, self._vocab_size, self._plan.top_k)

    def _of_vllm(self, vllm: Server) -> CompletionsServer:
        return CompletionsServer(vllm.url, MODEL_NAME, self._vocab_size, self._plan.top_k)


def _figure(load: Load) -> str:
    return f"{load.positions_per_second:,.0f} positions/s"


def _alternating(repeat: int) -> tuple[bool, bool]:
    """Whose turn it is, ours first in every second repeat: neither has the cooler or quieter machine."""
    return (True, False) if repeat % 2 == 0 else (False, True)


def agreement(ours: Sequence[SparseRows], theirs: Sequence[SparseRows]) -> dict[str, float]:
    """How far two scorings of the same sequences are apart: rounding and the composition of batches, if all is well."""
    same = [np.mean(a.ids[:, 0] == b.ids[:, 0]) for a, b in zip(ours, theirs, strict=True)]
    apart = [np.abs(a.realised_logprobs - b.realised_logprobs) for a, b in zip(ours, theirs, strict=True)]
    return {
        "same_most_probable_id": float(np.mean(same)),
        "realised_logprob_median_difference": float(np.median(np.concatenate(apart))),
        "realised_logprob_largest_difference": float(np.concatenate(apart).max()),
    }


def vocab_size_of(model: Path) -> int:
    """Width of a model's output layer."""
    return int(orjson.loads((model / "config.json").read_bytes())["vocab_size"])
