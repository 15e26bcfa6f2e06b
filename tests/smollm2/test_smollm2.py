"""Everything with a model that somebody else has trained: SmolLM2-135M-Instruct, which make smollm2 makes."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from latentforge.core.checkpoints import list_checkpoints
from latentforge.model.causal_lm import open_causal_lm
from latentforge.model.config import TokenLevelConfig
from latentforge.model.initialisation import PARTS, start_token_level
from latentforge.model.token_level import TokenLevelModel
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sync_client import SyncTeacherClient
from latentforge.text.tokenizer import TextTokenizer
from tools.demo.settings import ROOT
from tools.gateway import gateway_answers, gateway_command
from tools.processes import Children

pytestmark = [pytest.mark.smollm2, pytest.mark.timeout(900)]

MODEL = ROOT / "models" / "cache" / "smollm2"
BIN = Path(sys.executable).parent
EOS, PAD = 0, 16
TEXT = "The sea covers most of the Earth. Its water is salty, since rivers carry the salts of rocks into it."


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(MODEL, eos_id=EOS, pad_id=PAD)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a gateway of its own before the model."""
    target = f"127.0.0.1:{(port := free_port())}"
    environment = {
        "TEACHER_BACKEND": "transformers",
        "TEACHER_MODEL": str(MODEL),
        "TOKENIZER_PATH": str(MODEL),
        "GATEWAY_PORT": str(port),
        "CACHE_URL": "none",
    }
    with Children(tmp_path_factory.mktemp("gateway"), env=environment) as children:
        children.start("gateway", gateway_command())
        children.wait_until(lambda: gateway_answers(target), "the gateway's start", seconds=300)
        yield target


def serves(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).is_success
    except httpx.TransportError:
        return False


@torch.no_grad()
def test_a_token_level_student_starts_as_the_model_itself(theirs: Any, tokenizer: TextTokenizer) -> None:
    source = open_causal_lm(str(MODEL))
    ids = tokenizer.encode(TEXT)
    model = TokenLevelModel(
        TokenLevelConfig(**source.sizes, vocab_size=source.vocab_size, pad_id=PAD, eos_id=EOS, max_tokens=64)
    ).eval()
    start_token_level(model, source, PARTS)
    logits = model.logits(torch.tensor([ids]))
    wanted = theirs(torch.tensor([[EOS, *ids[:-1]]])).logits
    assert logits.shape == (1, len(ids), 49_152)
    torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=2e-3)


@torch.no_grad()
def test_scoring_is_transformers(gateway: str, theirs: Any, tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    with SyncTeacherClient(gateway) as client:
        assert client.teacher().vocab_size == 49_152
        rows = client.score(ids, 20, "float32")
    logprobs = theirs(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    wanted, best = logprobs.topk(20)
    np.testing.assert_allclose(rows.logprobs, wanted.numpy(), atol=2e-3)
    assert (rows.ids == best.numpy()).mean() > 0.99
    realised = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    np.testing.assert_allclose(rows.realised_logprobs, realised.numpy(), atol=2e-3)


def test_it_answers_a_chat(gateway: str, tokenizer: TextTokenizer) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="What is the capital of France?")])
    with SyncTeacherClient(gateway) as client:
        client.teacher()
        request = pb.GenerateRequest(
            chat=chat, max_tokens=24, temperature=0.0, tokenizer_fingerprint=tokenizer.fingerprint
        )
        ids = [i for piece in client.generate(request) for i in piece.token_ids]
    assert "Paris" in tokenizer.decode(ids)


def test_a_run_distils_it_and_inference_answers_with_the_student(
    gateway: str, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    data = tmp_path / "text.jsonl"
    question = [{"role": "user", "content": "Why is the sea salty?"}]
    chats = [{"messages": [*question, {"role": "assistant", "content": f"{i} times: {TEXT}"}]} for i in range(40)]
    texts = [{"text": f"{i}. {TEXT}"} for i in range(40)]
    data.write_text("".join(json.dumps(document) + "\n" for document in texts + chats))
    port = free_port()
    environment = {
        "RUNS_DIR": str(tmp_path / "runs"),
        "CHECKPOINTS_DIR": str(tmp_path / "checkpoints"),
        "TOKENIZER_PATH": str(MODEL),
        "GATEWAY_TARGET": gateway,
        "INFERENCE_PORT": str(port),
    }
    sets = [f"data.eos_id={EOS}", f"data.pad_id={PAD}", "data.sequence_length=64", "student.optim.steps=6"]
    sets += ["autoencoder.optim.steps=4", "student.samples=0"]
    command = [str(BIN / "trainer"), "run", "--recipe", "smoke", "--run", "english", "--data", str(data)]
    command += [part for value in sets for part in ("--set", value)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    result = json.loads((tmp_path / "runs" / "english" / "student.json").read_text())
    assert result["curve"][-1]["kd"] < result["curve"][0]["kd"]
    newest = list_checkpoints(tmp_path / "checkpoints" / "english")[-1]
    manifest = json.loads((newest / "manifest.json").read_text())
    assert manifest["teacher"]["model"] == "smollm2"
    # <|endoftext|> between texts, and <|im_end|> behind an assistant's turn.
    assert manifest["end_ids"] == [0, 2]

    url = f"http://127.0.0.1:{port}"
    with Children(tmp_path, env=environment) as children:
        children.start("inference", [str(BIN / "inference"), "serve"])
        children.wait_until(lambda: serves(url), "inference's start", seconds=120)
        asked = {"prompt": "The sea", "max_new_tokens": 12, "seed": 1}
        written = httpx.post(f"{url}/generate", json=asked, timeout=60).raise_for_status().json()
        asked = {"messages": question, "max_tokens": 12, "seed": 1}
        answer = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=60).raise_for_status().json()
    assert written["checkpoint"] == answer["model"] == "english/step-00000006"
    assert written["text"] == tokenizer.decode(written["token_ids"])
    assert written["usage"]["prompt_tokens"] == len(tokenizer.encode("The sea"))
    assert answer["choices"][0]["message"]["content"]
    template: Any = AutoTokenizer.from_pretrained(MODEL)
    prompt = template.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    assert answer["usage"]["prompt_tokens"] == len(prompt)
