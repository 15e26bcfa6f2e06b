"""Everything with a model that somebody else has trained: SmolLM2-135M-Instruct, which make smollm2 makes."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from latentforge.model.causal_lm import open_causal_lm
from latentforge.model.config import TokenLevelConfig
from latentforge.model.initialisation import PARTS, start_token_level
from latentforge.model.token_level import TokenLevelModel
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sync_client import SyncTeacherClient
from latentforge.text.tokenizer import TextTokenizer
from tools.demo.settings import ROOT
from tools.gateway import gateway_answers

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


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a gateway of its own before the model."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    environment = os.environ | {
        "TEACHER_BACKEND": "transformers",
        "TEACHER_MODEL": str(MODEL),
        "TOKENIZER_PATH": str(MODEL),
        "GATEWAY_PORT": str(port),
        "CACHE_URL": "none",
    }
    log = tmp_path_factory.mktemp("gateway") / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen([BIN / "teacher-gateway", "serve"], env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 300
        while not gateway_answers(f"127.0.0.1:{port}"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


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
