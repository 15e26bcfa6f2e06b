"""Score through the gateway equals transformers on the same weights."""

import asyncio

import grpc
import numpy as np
import pytest

from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.errors import TeacherError

from .conftest import LONGEST, MAX_TOP_K, SPECIAL, VOCAB_SIZE, Reference, RunGateway, VllmServer

# Whichever test comes first waits for the server.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def random_ids(length: int, seed: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, VOCAB_SIZE, length)]


async def test_it_says_what_it_is(client: TeacherClient) -> None:
    about = await client.teacher()
    assert about.backend == "vllm-remote"
    assert about.model == "tiny-qwen3"
    assert about.engine == "vllm 0.32.0"
    assert about.can_score
    assert about.can_generate
    assert about.vocab_size == VOCAB_SIZE
    assert about.max_sequence_length == LONGEST
    assert about.max_top_k == MAX_TOP_K


async def test_a_compatible_server_that_is_vllm_is_asked_as_vllm(
    run_gateway: RunGateway, vllm: VllmServer, reference: Reference
) -> None:
    async with run_gateway(teacher_backend="openai-compatible", openai_compatible_url=f"{vllm.url}/v1") as client:
        about = await client.teacher()
        assert (about.backend, about.engine) == ("openai-compatible", "vllm 0.32.0")
        token_ids = random_ids(LONGEST, seed=4)
        reference.check(await client.score(token_ids, 5, "float32"), token_ids, 5)


@pytest.mark.parametrize("top_k", [1, 2, 5, 20, MAX_TOP_K])
async def test_every_position_is_right_for_every_k(client: TeacherClient, reference: Reference, top_k: int) -> None:
    token_ids = random_ids(LONGEST, seed=top_k)
    reference.check(await client.score(token_ids, top_k, "float32"), token_ids, top_k)


async def test_every_length_is_right(client: TeacherClient, reference: Reference) -> None:
    longest = random_ids(LONGEST, seed=1)
    expected = reference.logprobs(longest)
    lengths = list(range(2, LONGEST + 1))
    seen = set()
    async for scored in client.score_batch([longest[:n] for n in lengths], 5, "float32"):
        assert scored.error is None
        assert scored.rows is not None
        n = lengths[scored.index]
        assert len(scored.rows) == n - 1
        reference.check_at(scored.rows, expected[: n - 1], longest[1:n])
        seen.add(n)
    assert seen == set(lengths)


async def test_a_batch_keeps_its_sequences_apart(client: TeacherClient, reference: Reference) -> None:
    lengths = np.random.default_rng(2).integers(2, LONGEST + 1, 48).tolist()
    sequences = [random_ids(n, seed=100 + i) for i, n in enumerate(lengths)]
    answers = {scored.index: scored.rows async for scored in client.score_batch(sequences, 3, "float32")}
    assert set(answers) == set(range(len(sequences)))
    for index, token_ids in enumerate(sequences):
        rows = answers[index]
        assert rows is not None
        reference.check(rows, token_ids, 3)


async def test_every_id_is_scored_special_and_padding_ids_too(client: TeacherClient, reference: Reference) -> None:
    order = np.random.default_rng(3).permutation(VOCAB_SIZE).tolist()
    for part in (order[: VOCAB_SIZE // 2], order[VOCAB_SIZE // 2 :]):
        reference.check(await client.score(part, 8, "float32"), part, 8)
    for special in range(len(SPECIAL)):
        token_ids = [special, 104, special, special, 105, special]
        reference.check(await client.score(token_ids, 8, "float32"), token_ids, 8)


async def test_what_cannot_be_scored_is_refused(client: TeacherClient) -> None:
    for token_ids, top_k in (([7], 5), ([7] * (LONGEST + 1), 5), ([7, VOCAB_SIZE], 5), ([7, 8], MAX_TOP_K + 1)):
        with pytest.raises(TeacherError) as caught:
            await client.score(token_ids, top_k)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_many_callers_at_one_time_get_their_own_rows(client: TeacherClient, reference: Reference) -> None:
    sequences = [random_ids(40 + i, seed=500 + i) for i in range(40)]
    answers = await asyncio.gather(*(client.score(token_ids, 4, "float32") for token_ids in sequences))
    for token_ids, rows in zip(sequences, answers, strict=True):
        reference.check(rows, token_ids, 4)


async def test_a_larger_k_than_the_server_gives_is_refused_at_the_start(run_gateway: RunGateway) -> None:
    with pytest.raises(RuntimeError, match=rf"max allowed: {MAX_TOP_K}.*MAX_TOP_K"):
        async with run_gateway(max_top_k=MAX_TOP_K + 1):
            pass
