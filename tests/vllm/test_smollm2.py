"""A model that somebody else has trained behind vLLM, scored through the gateway: transformers' own numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from latentforge.text.tokenizer import TextTokenizer
from tools.demo.settings import ROOT

from .conftest import running_gateway, running_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.smollm2, pytest.mark.timeout(900)]

MODEL = ROOT / "models" / "cache" / "smollm2"
TEXT = "The sea covers most of the Earth. Its water is salty, since rivers carry the salts of rocks into it."
TOP_K = 20
# Both compute in float32, in another order: nats of a log-probability.
TOLERANCE = 2e-3


async def test_smollm2_is_scored_as_transformers_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ids = TextTokenizer(MODEL).encode(TEXT)
    with running_vllm(MODEL, tmp_path / "vllm.log", teacher_dtype="float32") as server:
        async with running_gateway(server, MODEL) as client:
            about = await client.teacher()
            rows = await client.score(ids, TOP_K, "float32")
    assert (about.model, about.vocab_size, about.max_top_k) == ("smollm2", 49_152, 64)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1).numpy()
    best = -np.sort(-logprobs, axis=1)[:, :TOP_K]
    own = logprobs[np.arange(len(ids) - 1), ids[1:]]
    assert rows.ids.shape == (len(ids) - 1, TOP_K)
    np.testing.assert_allclose(rows.logprobs, best, atol=TOLERANCE)
    np.testing.assert_allclose(np.take_along_axis(logprobs, rows.ids.astype(np.int64), 1), best, atol=TOLERANCE)
    np.testing.assert_allclose(rows.realised_logprobs, own, atol=TOLERANCE)
    np.testing.assert_allclose(rows.tail_mass, 1 - np.exp(best).sum(axis=1), atol=TOLERANCE)
