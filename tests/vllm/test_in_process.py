"""VLLM_LOCAL_MODE=in-process: a gateway in vLLM's own environment, with the engine inside."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.wire import rows_from_proto
from tools.gateway import gateway_answers
from tools.processes import Children
from tools.vllm_env import VENV_PYTHON

from .conftest import LONGEST, MAX_MODEL_LEN, MAX_TOP_K, VOCAB_SIZE, Reference

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

_START_SECONDS = 600.0


@pytest.fixture(scope="module")
def target(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of the gateway, which is told to stop in the end."""
    folder = tmp_path_factory.mktemp("in-process")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    env = {
        "TEACHER_BACKEND": "vllm-local",
        "VLLM_LOCAL_MODE": "in-process",
        "VLLM_LOCAL_MODEL": str(model_folder),
        "VLLM_MAX_MODEL_LEN": str(MAX_MODEL_LEN),
        "GATEWAY_PORT": str(port),
        "CACHE_URL": "none",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
    with Children(folder, cwd=folder, env=env, grace=30) as children:
        gateway = children.start("gateway", [str(VENV_PYTHON.with_name("teacher-gateway")), "serve"])
        address = f"127.0.0.1:{port}"
        children.wait_until(lambda: gateway_answers(address), "loading the engine", seconds=_START_SECONDS)
        yield address
        os.kill(gateway.pid, signal.SIGTERM)
        deadline = time.monotonic() + 30
        while gateway.exit_code() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert gateway.exit_code() == 0


async def test_its_rows_are_right(target: str, reference: Reference) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, VOCAB_SIZE, n).tolist() for n in (2, 3, 31, 128, LONGEST)]
    async with TeacherClient(target, timeout=120, attempts=1) as client:
        about = await client.teacher()
        assert (about.backend, about.engine) == ("vllm-local", "vllm 0.32.0 in-process")
        assert about.max_sequence_length == LONGEST
        for top_k in (1, 20, MAX_TOP_K):
            async for scored in client.score_batch(sequences, top_k, "float32"):
                assert scored.rows is not None, scored.error
                reference.check(scored.rows, sequences[scored.index], top_k)


async def test_what_it_writes_has_its_rows_and_all_ranks(target: str, reference: Reference) -> None:
    prompt = [104, 105, 106]
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt),
        max_tokens=30,
        temperature=1.0,
        seed=3,
        n=3,
        top_k=5,
        logprob_dtype=pb.LOGPROB_DTYPE_FLOAT32,
    )
    seen = set()
    async with TeacherClient(target, timeout=120, attempts=1) as client:
        async for answer in client.generate(request):
            rows = rows_from_proto(answer.rows)
            token_ids = list(answer.token_ids)
            assert rows.first_position == len(prompt)
            assert (rows.realised_ranks > 0).all()
            reference.check_at(rows, reference.logprobs(prompt + token_ids)[len(prompt) - 1 :], token_ids)
            seen.add(answer.index)
    assert seen == {0, 1, 2}


async def test_a_caller_who_leaves_leaves_nothing_behind(target: str, reference: Reference) -> None:
    token_ids = list(range(100, 140))
    async with TeacherClient(target, timeout=120, attempts=1) as client:
        await client.teacher()
        leaving = [asyncio.create_task(client.score([*token_ids, i], 5)) for i in range(20)]
        await asyncio.sleep(0.01)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        reference.check(await client.score(token_ids, 5, "float32"), token_ids, 5)


async def test_too_large_a_k_is_refused(target: str) -> None:
    async with TeacherClient(target, timeout=120, attempts=1) as client:
        with pytest.raises(TeacherError) as caught:
            await client.score([1, 2], MAX_TOP_K + 1)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
