"""A vLLM server that is started anew, as the same teacher or as another, while a gateway asks it."""

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest

from latentforge.gateway.backends.base import Backend, BackendError, ContinuationRequest, FailureKind
from latentforge.teacher_client.errors import TeacherError

from .conftest import FakeVllm, MakeBackend

IDS = np.array([5, 6, 7], np.uint32)
PROMPT = ContinuationRequest(IDS, 2, 0.0, 1.0, 1, 1, 2, ())


async def changed(backend: Backend, *words: str) -> None:
    """Scoring, continuing and the check are refused, with these words."""

    async def continue_prompt() -> None:
        async for _ in backend.generate(PROMPT):
            pass

    for ask in (lambda: backend.score([IDS], 2), continue_prompt, backend.check):
        with pytest.raises(BackendError) as caught:
            await ask()
        assert caught.value.kind is FailureKind.CHANGED, caught.value
        assert all(word in str(caught.value) for word in words), caught.value
        assert "VLLM_REMOTE_URL=" in str(caught.value)


async def test_an_answer_with_another_fingerprint_is_refused_on_a_connection_that_stays(
    make_backend: MakeBackend, server: FakeVllm
) -> None:
    """As behind a proxy, whose connections outlive the server."""
    backend = make_backend()
    await backend.load()
    (rows,) = await backend.score([IDS], 2)
    server.fingerprint = "g"
    with pytest.raises(BackendError, match="system_fingerprint 'g', which was 'f'") as caught:
        await backend.score([IDS], 2)
    assert caught.value.kind is FailureKind.CHANGED
    with pytest.raises(BackendError, match="system_fingerprint 'g', which was 'f'"):
        [piece async for piece in backend.generate(PROMPT)]
    with pytest.raises(BackendError) as caught:
        await backend.check()
    assert caught.value.kind is FailureKind.CHANGED
    server.fingerprint = None
    with pytest.raises(BackendError, match="system_fingerprint '', which was 'f'"):
        await backend.score([IDS], 2)
    server.fingerprint = "f"
    (again,) = await backend.score([IDS], 2)
    assert again.logprobs.tolist() == rows.logprobs.tolist()
    await backend.check()
    await backend.close()


async def test_other_weights_behind_a_proxy_that_said_502_meanwhile_are_refused(
    make_backend: MakeBackend, server: FakeVllm
) -> None:
    """Name, path, version and configuration are the first one's, and the connection stays."""
    backend = make_backend()
    await backend.load()
    await backend.score([IDS], 2)
    said: list[str] = []

    def restarting(path: str, asked: dict[str, Any], answer: tuple[int, bytes]) -> tuple[int, bytes]:
        if path != "/v1/completions" or said:
            return answer
        said.append(path)
        server.slope = 0.06
        return 502, b""

    server.change = restarting
    with pytest.raises(BackendError, match="log-probabilities of one text differ") as caught:
        await backend.score([IDS], 2)
    assert caught.value.kind is FailureKind.CHANGED
    await backend.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"root": "models/other"}, ["models/tiny", "models/other"]),
        ({"slope": 0.06}, ["log-probabilities of one text differ by 0.", "models/tiny"]),
        ({"fingerprint": "g"}, ["'g'"]),
    ],
)
async def test_another_teacher_after_a_lost_connection_is_refused_with_both(
    make_backend: MakeBackend, server: FakeVllm, change: dict[str, Any], words: list[str]
) -> None:
    backend = make_backend()
    await backend.load()
    revision = backend.description.revision
    (rows,) = await backend.score([IDS], 2)
    server.stop()
    before = {name: getattr(server, name) for name in change}
    for name, value in change.items():
        setattr(server, name, value)
    server.start()
    await changed(backend, *words, *([] if "fingerprint" in change else [revision]))
    server.stop()
    for name, value in before.items():
        setattr(server, name, value)
    server.start()
    await backend.check()
    (again,) = await backend.score([IDS], 2)
    assert again.logprobs.tolist() == rows.logprobs.tolist()
    assert backend.description.revision == revision
    await backend.close()


async def test_a_server_that_does_not_know_the_model_any_more_has_changed(
    make_backend: MakeBackend, server: FakeVllm
) -> None:
    for settings in ({}, {"vllm_served_model": "tiny"}):
        backend = make_backend(**settings)
        await backend.load()
        server.stop()

        def renamed(path: str, asked: dict[str, Any], answer: tuple[int, bytes]) -> tuple[int, bytes]:
            if path == "/v1/completions":
                return 404, b'{"error": {"message": "The model `tiny` does not exist.", "code": 404}}'
            return answer[0], answer[1].replace(b'"id":"tiny"', b'"id":"big"')

        server.change = renamed
        server.start()
        await changed(backend, "tiny", "big")
        server.change = lambda path, asked, answer: answer
        await backend.close()


async def test_a_server_that_comes_back_as_it_was_is_believed_after_one_look(
    make_backend: MakeBackend, server: FakeVllm
) -> None:
    backend = make_backend()
    await backend.load()
    (rows,) = await backend.score([IDS], 2)
    server.stop()
    # Rounding of another batch, or of another machine.
    server.slope *= 1.0001
    server.start()
    answers = await asyncio.gather(*(backend.score([IDS], 2) for _ in range(8)))
    assert all(np.allclose(again.logprobs, rows.logprobs, atol=1e-3) for (again,) in answers)
    await backend.score([IDS], 2)
    looks = len([path for path, _, _ in server.asked if path == "/v1/models"])
    for _ in range(5):
        await backend.score([IDS], 2)
    # A connection that is open already is no reason to look again.
    assert len([path for path, _, _ in server.asked if path == "/v1/models"]) == looks
    await backend.close()


async def test_an_answer_is_not_given_while_the_server_cannot_be_compared(
    make_backend: MakeBackend, server: FakeVllm
) -> None:
    backend = make_backend()
    await backend.load()
    server.stop()
    server.change = lambda path, asked, answer: (503, b"") if path == "/v1/models" else answer
    server.start()
    with pytest.raises(BackendError, match="answers 503") as caught:
        await backend.score([IDS], 2)
    assert caught.value.kind is FailureKind.GONE
    await backend.close()


async def test_a_check_finds_a_dead_server_one_whose_engine_died_and_one_that_is_back(
    make_backend: MakeBackend, server: FakeVllm
) -> None:
    backend = make_backend()
    await backend.load()
    await backend.check()
    server.stop()
    with pytest.raises(BackendError, match="cannot be reached") as caught:
        await backend.check()
    assert caught.value.kind is FailureKind.GONE
    server.start()
    await backend.check()
    server.change = lambda path, asked, answer: (503, b"") if path == "/health" else answer
    with pytest.raises(BackendError, match="answers 503"):
        await backend.check()
    # A proxy may show /v1 only.
    server.change = lambda path, asked, answer: (404, b"") if path == "/health" else answer
    await backend.check()
    await backend.close()


async def test_rows_of_another_teacher_are_never_given_nor_cached_and_cached_ones_stay_its_own(
    gateway_of: Any, server: FakeVllm
) -> None:
    async with gateway_of(server) as (_, client):
        about = await client.teacher()
        known = await client.score([5, 6, 7], 2, "float32")
        server.stop()
        server.slope = 0.06
        server.start()
        for ask in (client.score([8, 9, 10], 2, "float32"), client.score([8, 9, 11], 2, "float32")):
            with pytest.raises(TeacherError) as caught:
                await ask
            assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
            assert caught.value.reason == "TEACHER_CHANGED"
            assert about.revision in caught.value.message
        batch = [answer async for answer in client.score_batch([[8, 9, 10], [8, 9, 11]], 2, "float32")]
        assert [answer.error.reason for answer in batch] == ["TEACHER_CHANGED"] * 2
        cached = await client.score([5, 6, 7], 2, "float32", "arrays", about.revision)
        assert cached.logprobs.tolist() == known.logprobs.tolist()
        assert (await client.cache_stats()).entries == 1
        server.stop()
        server.slope = 0.05
        server.start()
        right = await client.score([8, 9, 10], 2, "float32")
        assert right.logprobs[0].tolist() == known.logprobs[0].tolist()


async def test_two_answers_on_their_way_while_it_changes_are_not_mixed(gateway_of: Any, server: FakeVllm) -> None:
    """The server ends while it computes; what took its place would answer what is asked again."""
    async with gateway_of(server) as (_, client):
        await client.score([5, 6, 7], 2)
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()

        def die_once(path: str, asked: dict[str, Any], answer: tuple[int, bytes]) -> tuple[int, bytes]:
            if path == "/v1/completions" and not stopped.is_set():
                loop.call_soon_threadsafe(stopped.set)
                return 502, b""
            return answer

        server.change = die_once
        scoring = asyncio.ensure_future(client.score([8, 9, 10], 2))
        await stopped.wait()
        await asyncio.to_thread(server.stop)
        server.slope = 0.06
        server.start()
        with pytest.raises(TeacherError, match="FAILED_PRECONDITION"):
            await scoring
