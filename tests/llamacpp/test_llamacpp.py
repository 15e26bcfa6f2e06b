"""TEACHER_BACKEND=openai-compatible before a real llama.cpp, beside the same weights in transformers."""

import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from latentforge.gateway.backends import build_backend
from latentforge.gateway.backends.base import BackendError
from latentforge.gateway.main import Gateway
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.wire import rows_from_proto
from tools.llamacpp_env import GGUF, LLAMACPP
from tools.processes import Child
from tools.smollm2.__main__ import FOLDER

pytestmark = [pytest.mark.llamacpp, pytest.mark.timeout(300)]

CONTEXT = 512
TOP_K = 16
# llama.cpp computes with weights and activations of 4 and 8 bits, the other with the former as bfloat16.
MEAN_TOLERANCE = 0.15
_START_SECONDS = 60.0


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not (LLAMACPP.python.is_file() and GGUF.is_file() and (FOLDER / "config.json").is_file()):
        pytest.fail("no llama.cpp here; run: make test-llamacpp")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("llamacpp") / "server.log"
    serve = str(Path(__file__).with_name("serve.py"))
    server = Child("llama.cpp", [str(LLAMACPP.python), serve, str(GGUF), str(port), str(CONTEXT)], log=log, env={})
    try:
        ends = time.monotonic() + _START_SECONDS
        while not _answers(address):
            server.check()
            assert time.monotonic() < ends, f"llama.cpp did not start; see {log}"
            time.sleep(0.2)
        yield address
    finally:
        server.stop(grace=10)


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def settings_of(url: str, **changes: Any) -> GatewaySettings:
    defaults: dict[str, Any] = {
        "teacher_backend": "openai-compatible",
        "openai_compatible_url": url,
        "tokenizer_path": FOLDER,
        "gateway_port": 0,
        "cache_url": "none",
        "max_top_k": TOP_K,
        "vllm_start_seconds": 0,
    }
    return GatewaySettings(**(defaults | changes))


@asynccontextmanager
async def running(url: str) -> AsyncIterator[TeacherClient]:
    gateway = Gateway(settings_of(url))
    await gateway.start()
    try:
        await gateway.load()
        async with TeacherClient(f"127.0.0.1:{gateway.port}", timeout=120) as client:
            yield client
    finally:
        await gateway.stop()


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


async def generated(client: TeacherClient, **fields: Any) -> pb.GenerateResponse:
    defaults: dict[str, Any] = {"max_tokens": 24, "temperature": 1.0, "seed": 7, "top_k": TOP_K}
    request = pb.GenerateRequest(logprob_dtype=pb.LOGPROB_DTYPE_FLOAT32, **(defaults | fields))
    (answer,) = [answer async for answer in client.generate(request)]
    return answer


async def test_rows_of_its_own_text_are_the_models_by_id(url: str, model: Any) -> None:
    async with running(url) as client:
        about = await client.teacher()
        assert (about.can_score, about.can_generate) == (False, True)
        assert about.id_fidelity == pb.ID_FIDELITY_EXACT
        assert about.logprobs_mode == pb.LOGPROBS_MODE_RAW
        assert about.engine.startswith("llamacpp")
        assert about.max_sequence_length == CONTEXT - 1
        answer = await generated(client, text="The capital of France is", temperature=1.2)
    rows = rows_from_proto(answer.rows)
    prompt = list(answer.prompt_token_ids)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer.token_ids]])).logits[0, len(prompt) - 1 : -1]
    expected = logits.double().log_softmax(-1).numpy()
    assert rows.first_position == len(prompt)
    assert len(rows) == len(answer.token_ids)
    at_ids = np.take_along_axis(expected, rows.ids.astype(np.int64), axis=1)
    likely = rows.logprobs > np.log(0.01)
    assert np.abs(rows.logprobs - at_ids)[likely].mean() < MEAN_TOLERANCE
    own = np.take_along_axis(expected, np.array(answer.token_ids)[:, None], axis=1)[:, 0]
    assert np.abs(rows.realised_logprobs - own).mean() < 2 * MEAN_TOLERANCE
    # Rows that are one position off are nowhere near.
    shifted = np.take_along_axis(np.roll(expected, 1, axis=0), rows.ids.astype(np.int64), axis=1)
    assert np.abs(rows.logprobs - shifted)[likely].mean() > 10 * MEAN_TOLERANCE


async def test_an_answer_to_a_chat_ends_with_the_token_that_ends_it(url: str) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Say only the word yes.")])
    async with running(url) as client:
        answer = await generated(client, chat=chat, max_tokens=200, temperature=0.0)
        assert answer.finish_reason == pb.FINISH_REASON_STOP
        # The text is what the tokens before the last stand for.
        assert answer.text == await client.detokenize(answer.token_ids[:-1])
        assert "<|im_end|>" not in answer.text
        assert await client.detokenize(answer.token_ids[-1:]) == "<|im_end|>"
        assert rows_from_proto(answer.rows).first_position == len(answer.prompt_token_ids)


async def test_a_stop_string_ends_a_text_before_it(url: str) -> None:
    async with running(url) as client:
        whole = await generated(client, text="One, two, three,", temperature=0.0, top_k=0)
        word = whole.text.split()[1]
        cut = await generated(client, text="One, two, three,", temperature=0.0, stop=[word])
    assert cut.finish_reason == pb.FINISH_REASON_STOP
    assert cut.text == whole.text[: whole.text.index(word)]


async def test_scoring_is_refused_since_it_ignores_echo(url: str) -> None:
    async with running(url) as client:
        with pytest.raises(TeacherError, match="cannot score given tokens") as caught:
            await client.score([504, 3575, 282], top_k=4)
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
    asked = {"prompt": [504, 3575, 282], "max_tokens": 1, "echo": True, "logprobs": 3}
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = (await http.post(f"{url}/v1/completions", json=asked)).json()
    # Once it echoes a prompt with its log-probabilities, they can be scored with.
    assert len(answer["choices"][0]["logprobs"]["content"]) == 1


async def test_another_tokenizer_is_refused(url: str) -> None:
    other = Path(__file__).parents[2] / "models" / "stdlib-teacher"
    backend = build_backend(settings_of(url, tokenizer_path=other), Metrics())
    with pytest.raises(BackendError, match=r"is not the tokenizer of .*SmolLM2.*ids of one text differ"):
        await backend.load()
    await backend.close()
