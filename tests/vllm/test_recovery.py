"""vLLM is killed while it works, and comes back."""

import asyncio
import time

import grpc
import numpy as np
import pytest

from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sparse_rows import SparseRows

from .conftest import LONGEST, VOCAB_SIZE, Reference, VllmServer

# Whichever test comes first waits for the server.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

_SECONDS_TO_FIND_IT = 15.0


async def rows_or_unavailable(client: TeacherClient, token_ids: list[int]) -> SparseRows | None:
    try:
        return await client.score(token_ids, 20, "float32")
    except TeacherError as error:
        if error.code is not grpc.StatusCode.UNAVAILABLE:
            raise
        return None


async def test_a_killed_server_is_unavailable_and_is_found_again(
    client: TeacherClient, vllm: VllmServer, reference: Reference
) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, VOCAB_SIZE, LONGEST).tolist() for _ in range(250)]
    revision = (await client.teacher()).revision
    good, codes = 0, set()
    async for scored in client.score_batch(sequences, 20, "float32"):
        if good == 0:
            await asyncio.to_thread(vllm.kill)
        if scored.error is None:
            assert scored.rows is not None
            reference.check(scored.rows, sequences[scored.index], 20)
            good += 1
        else:
            codes.add(scored.error.code)
    assert 0 < good < len(sequences)
    assert codes == {grpc.StatusCode.UNAVAILABLE}
    with pytest.raises(TeacherError) as caught:
        await client.score(sequences[0], 20)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert "VLLM_REMOTE_URL" in str(caught.value)

    vllm.start()
    await asyncio.to_thread(vllm.wait)
    deadline = time.monotonic() + _SECONDS_TO_FIND_IT
    while (rows := await rows_or_unavailable(client, sequences[-1])) is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.5)
    reference.check(rows, sequences[-1], 20)
    assert (await client.teacher()).revision == revision
