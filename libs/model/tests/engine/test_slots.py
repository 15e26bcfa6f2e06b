"""The engine over the decoding that serves: what a text is does not depend on what is written beside it."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from latentforge.model.config import InductionConfig
from latentforge.model.decoding.build import batch_decoding
from latentforge.model.decoding.slot_decoding import SlotDecoding
from latentforge.model.engine.engine import Engine
from latentforge.model.engine.limits import EngineLimits
from latentforge.model.engine.offline import run
from latentforge.model.engine.requests import GenerationRequest
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams
from latentforge.model.token_level import TokenLevelModel, token_level_config
from tests.engine_clients import Client
from tests.serial_decoding import SerialDecoding, written_alone

MakeModel = Callable[..., LatentModel]


def some_requests(decoding: SlotDecoding, num: int, chance: random.Random) -> list[GenerationRequest]:
    def params() -> SamplingParams:
        return SamplingParams(
            seed=chance.randrange(1000),
            temperature=chance.choice([0, 0.7, 1]),
            top_p=chance.choice([0.8, 1]),
            top_k=chance.choice([0, 0, 5]),
            repetition_penalty=chance.choice([1, 1.3]),
            presence_penalty=chance.choice([0, 0.5]),
        )

    return [
        GenerationRequest(
            decoding,
            [chance.randrange(2, 64) for _ in range(chance.choice([0, 1, 5, 30, 300]))],
            chance.randrange(1, 60),
            params(),
            end_ids=frozenset(chance.sample(range(2, 64), 2)),
        )
        for _ in range(num)
    ]


def joining_at_random(requests: Sequence[GenerationRequest], chance: random.Random) -> list[Client]:
    """Submits them while the engine runs, and some others that are cancelled."""
    engine = Engine(EngineLimits(queue_limit=1000, prefill_tokens=64))
    clients: list[Client] = []
    others: list[Client] = []
    while len(clients) < len(requests) or not engine.is_idle:
        for request in requests[len(clients) :][: chance.randrange(3)]:
            clients.append(Client(engine).ask(request))
            others.append(Client(engine).ask(request))
        if others and chance.random() < 0.5:
            others.pop(chance.randrange(len(others))).ticket.cancel()
        engine.run_once()
    return clients


@pytest.mark.parametrize("kind", ["latent", "energy", "induction", "token-level"])
def test_an_exact_decoding_writes_bit_for_bit_what_it_writes_alone(make_model: MakeModel, kind: str) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "energy": {"head": "energy"},
        "induction": {"induction": InductionConfig(num_heads=2, size=8, context=3)},
    }
    model = make_model(max_chunks=128, **kinds.get(kind, {}))
    torch.manual_seed(3)
    twin = TokenLevelModel(token_level_config(model.student.config))
    decoding = batch_decoding(twin if kind == "token-level" else model, 6, exact=True)
    requests = some_requests(decoding, 25, random.Random(1))
    expected = [run([request])[0] for request in requests]
    clients = joining_at_random(requests, random.Random(2))
    assert [(client.token_ids, client.ended) for client in clients] == [
        (result.token_ids, result.finish_reason) for result in expected
    ]
    assert len({result.finish_reason for result in expected}) == 2
    assert decoding.num_free == 6


def test_it_writes_what_the_slow_reference_writes(make_model: MakeModel) -> None:
    model = make_model(max_chunks=32)
    decoding, slow = batch_decoding(model, 4), SerialDecoding(model)
    chance = random.Random(5)
    prompts = [[chance.randrange(2, 64) for _ in range(chance.randrange(40))] for _ in range(12)]
    greedy = SamplingParams(temperature=0)
    clients = joining_at_random([GenerationRequest(decoding, prompt, 30, greedy) for prompt in prompts], chance)
    for client, prompt in zip(clients, prompts, strict=True):
        assert (client.token_ids, client.ended) == written_alone(GenerationRequest(slow, prompt, 30, greedy))
