import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.base import BackendError, ContinuationRequest, FailureKind, Piece
from latentforge.gateway.backends.venice import messages as venice_messages
from latentforge.gateway.backends.venice.backend import TopLogprobs
from latentforge.teacher.v1 import teacher_pb2 as pb
from tools.venice_server.app import MODEL, MUTE_MODEL
from tools.venice_server.control import Fault

CHAT = (("user", "abc"),)


def chat_ids(backend: Any, chat: Sequence[tuple[str, str]] = CHAT) -> list[int]:
    ids: list[int] = backend.tokenizer.encode_chat([{"role": r, "content": c} for r, c in chat], to_answer=True)
    return ids


async def generated(backend: Any, **changes: Any) -> list[Piece]:
    defaults: dict[str, Any] = {
        "prompt_ids": np.array(chat_ids(backend, changes.get("chat", CHAT)), np.uint32),
        "max_tokens": 12,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 3,
        "n": 1,
        "top_k": 20,
        "stop": (),
        "chat": CHAT,
    }
    return [piece async for piece in backend.generate(ContinuationRequest(**(defaults | changes)))]


async def test_it_says_what_it_is(backend: Any) -> None:
    about = backend.description
    assert (about.backend, about.model, about.revision) == ("venice", MODEL, f"{MODEL}@1772668800")
    assert not about.can_score
    assert about.can_generate
    assert about.chat_prompts_only
    assert about.id_fidelity == pb.ID_FIDELITY_MAPPED
    assert (about.max_top_k, about.max_sequence_length, about.vocab_size) == (20, 2048, 4096)
    assert about.tokenizer_fingerprint == backend.tokenizer.fingerprint


async def test_the_width_and_the_length_come_from_the_settings_where_nothing_says_them(
    make_backend: Any, venice: Any, stdlib_teacher: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tokenizer-only"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_text((stdlib_teacher / name).read_text())
    backend = make_backend(venice, tokenizer_path=folder, max_sequence_length=100, max_top_k=7)
    await backend.load()
    about = backend.description
    assert (about.vocab_size, about.max_sequence_length, about.max_top_k) == (4096, 100, 7)
    with pytest.raises(BackendError, match="MAX_SEQUENCE_LENGTH=2049 is more than the 2048 tokens that local-teacher"):
        await make_backend(venice, max_sequence_length=2049).load()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"venice_api_key": None}, "VENICE_API_KEY is not set"),
        ({"venice_api_key": "sk-ключ"}, "VENICE_API_KEY has characters that no key has"),
        ({"venice_base_url": "api.venice.ai"}, "VENICE_BASE_URL malformed 'api.venice.ai'; allowed is http"),
        ({"tokenizer_path": None}, "TOKENIZER_PATH is not set; TEACHER_BACKEND=venice needs"),
        ({"tokenizer_path": Path("nowhere")}, "TOKENIZER_PATH=nowhere has no tokenizer.json"),
    ],
)
def test_a_setting_that_is_missing_is_named(make_backend: Any, venice: Any, changes: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        make_backend(venice, **changes)


async def test_a_model_without_logprobs_is_refused_with_those_that_have_them(make_backend: Any, venice: Any) -> None:
    with pytest.raises(BackendError, match=f"VENICE_MODEL={MUTE_MODEL} gives no logprobs; .*: {MODEL}$") as caught:
        await make_backend(venice, venice_model=MUTE_MODEL).load()
    assert caught.value.kind is FailureKind.MISCONFIGURED
    with pytest.raises(BackendError, match=f"VENICE_MODEL=absent is not listed; .*: {MODEL}$"):
        await make_backend(venice, venice_model="absent").load()


async def test_a_model_that_answers_without_logprobs_is_an_error_that_says_what_to_do(
    backend: Any, venice: Any
) -> None:
    venice.control.shape = "none"
    with pytest.raises(
        BackendError, match="answered without logprobs; listed models that give logprobs: local-teacher"
    ):
        await generated(backend)


async def test_n_continuations_differ_and_a_seed_repeats_them(backend: Any, venice: Any) -> None:
    first = await generated(backend, n=3, temperature=0.7)
    again = await generated(backend, n=3, temperature=0.7)
    assert [p.index for p in first] == [0, 1, 2]
    assert len({p.text for p in first}) == 3
    assert [(p.token_ids, p.text) for p in first] == [(p.token_ids, p.text) for p in again]
    assert len(venice.control.bodies) == 2
    assert await generated(backend, seed=4) != first[:1]


async def test_ids_that_have_no_text_are_reported_as_unmapped_mass(
    make_backend: Any, random_venice: Any, random_teacher: Path, reference: Any
) -> None:
    """40 of the random teacher's ids have none, and it finds them probable."""
    backend = make_backend(random_venice)
    await backend.load()
    pieces = await generated(backend, n=16, max_tokens=6, top_k=20)
    prompt = chat_ids(backend)
    kept = [piece for piece in pieces if piece.finish_reason != pb.FINISH_REASON_DROPPED]
    dropped = [piece for piece in pieces if piece.finish_reason == pb.FINISH_REASON_DROPPED]
    assert kept, "choose a seed that shows both"
    assert dropped, "choose a seed that shows both"
    assert all("no id is certain for token" in piece.detail for piece in dropped)
    for piece in kept:
        rows = piece.rows
        assert rows is not None
        assert rows.unmapped_mass is not None
        expected = np.exp(reference(random_teacher, [*prompt, *piece.token_ids])[rows.first_position - 1 :])
        for row in range(len(rows)):
            top = np.argsort(-expected[row])[:20]
            textless = top[top >= 260]
            count = int(rows.counts[row])
            assert rows.ids[row, :count].tolist() == [i for i in top if i < 260]
            assert rows.unmapped_mass[row] == pytest.approx(expected[row][textless].sum(), abs=1e-4)
            in_row = expected[row][rows.ids[row, :count]].sum()
            assert rows.tail_mass[row] == pytest.approx(1 - in_row, abs=1e-4)
            assert rows.unmapped_mass[row] <= rows.tail_mass[row] + 1e-6


@pytest.mark.parametrize("token_bytes", ["lossy", "none"])
async def test_lossy_tokens_are_dropped_and_never_become_other_ids(
    make_backend: Any, byte_venice: Any, token_bytes: str, byte_teacher: Path, reference: Any
) -> None:
    byte_venice.control.token_bytes = token_bytes
    backend = make_backend(byte_venice)
    await backend.load()
    prompt = chat_ids(backend)
    drawn = await generated(backend, n=48, max_tokens=2)
    pieces = [piece for piece in drawn if piece.finish_reason != pb.FINISH_REASON_DROPPED]
    assert 0 < len(pieces) < len(drawn)
    unmapped = 0.0
    for piece in pieces:
        expected = reference(byte_teacher, [*prompt, *piece.token_ids])[len(prompt) - 1 :]
        assert piece.rows is not None
        assert piece.rows.unmapped_mass is not None
        unmapped += float(piece.rows.unmapped_mass.sum())
        for row, count in enumerate(piece.rows.counts):
            ids = piece.rows.ids[row, :count]
            np.testing.assert_allclose(piece.rows.logprobs[row, :count], expected[row][ids], atol=1e-3)
    assert unmapped > 0


async def test_the_token_that_ended_a_text_is_given_where_venice_lists_it(make_backend: Any, byte_venice: Any) -> None:
    backend = make_backend(byte_venice)
    await backend.load()
    arguments: dict[str, Any] = {"max_tokens": 6, "temperature": 2.0, "top_k": 2, "seed": 0}
    listed = await generated(backend, **arguments)
    byte_venice.control.lists_end = False
    unlisted = await generated(backend, **arguments)
    ended = [piece.index for piece in listed if piece.finish_reason == pb.FINISH_REASON_STOP]
    assert ended, "choose a seed that shows it"
    for index in ended:
        assert listed[index].token_ids == [*unlisted[index].token_ids, 0]
        assert listed[index].text == unlisted[index].text
        assert unlisted[index].finish_reason == pb.FINISH_REASON_STOP


async def test_a_stop_string_ends_the_text_before_it(backend: Any) -> None:
    chat = (("user", "Write Python."),)
    prompt = {"chat": chat, "max_tokens": 24, "temperature": 0.0}
    (free,) = await generated(backend, **prompt)
    stop = free.text[6:9]
    (stopped,) = await generated(backend, **prompt, stop=("absent", stop))
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert stopped.finish_reason == pb.FINISH_REASON_STOP
    assert len(stopped.rows or ()) == len(stopped.token_ids)


async def test_a_prompt_that_venice_counts_otherwise_is_dropped_unless_told_not_to(
    make_backend: Any, venice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server adds a system prompt of its own when it is asked to, as Venice does by default."""
    monkeypatch.setattr(
        venice_messages,
        "VENICE_PARAMETERS",
        dict(venice_messages.VENICE_PARAMETERS) | {"include_venice_system_prompt": True},
    )
    backend = make_backend(venice)
    await backend.load()
    (piece,) = await generated(backend, temperature=0.5)
    rendered = len(chat_ids(backend))
    assert piece.finish_reason == pb.FINISH_REASON_DROPPED
    assert f"chat template of TOKENIZER_PATH={venice.folder} gives {rendered}" in piece.detail
    trusting = make_backend(venice, venice_check_prompt=False)
    await trusting.load()
    assert (await generated(trusting, seed=8))[0].detail != piece.detail


async def test_a_choice_that_is_missing_is_dropped_and_the_others_stay(backend: Any, venice: Any) -> None:
    venice.control.edit = lambda answer: answer["choices"].pop(0)
    first, second = await generated(backend, n=2, temperature=0.3)
    assert first.finish_reason == pb.FINISH_REASON_DROPPED
    assert first.detail == "the answer has 1 of 2 choices"
    assert second.finish_reason == pb.FINISH_REASON_LENGTH


def test_half_as_many_entries_are_asked_for_from_a_429_to_ten_successes() -> None:
    top = TopLogprobs(20)
    assert top.now == 20
    top.limited()
    widths = []
    for _ in range(11):
        widths.append(top.now)
        top.succeeded()
    assert widths == [10] * 10 + [20]
    for _ in range(9):
        top.limited()
    assert top.now == 10


async def test_a_429_narrows_the_rows_that_follow_and_the_try_itself(
    make_backend: Any, venice: Any, fake_time: Any
) -> None:
    backend = make_backend(venice)
    await backend.load()
    venice.control.faults.append(
        Fault(429, "Rate limit exceeded", {"retry-after": "2", "x-ratelimit-remaining-requests": "9"})
    )
    pieces = [(await generated(backend, seed=seed, max_tokens=1))[0] for seed in range(12)]
    assert [body["top_logprobs"] for body in venice.control.bodies] == [20] + [10] * 10 + [20, 20]
    assert [piece.rows.top_k for piece in pieces if piece.rows is not None] == [10] * 10 + [20, 20]
    assert fake_time.slept == pytest.approx([2], abs=0.1)


async def test_no_more_than_eight_requests_are_open(backend: Any, venice: Any) -> None:
    venice.control.delay = 0.05
    pieces = await asyncio.gather(*(generated(backend, max_tokens=1, seed=seed) for seed in range(24)))
    assert len(pieces) == 24
    assert venice.control.most_open == 8


async def test_the_breaker_opens_before_venice_blocks_the_key(make_backend: Any, venice: Any, fake_time: Any) -> None:
    backend = make_backend(venice)
    await backend.load()
    venice.control.faults.extend([Fault(503, "The model is at capacity. Please try again later.")] * 200)
    outcomes = await asyncio.gather(*(generated(backend, max_tokens=1) for _ in range(40)), return_exceptions=True)
    assert all(isinstance(outcome, BackendError) for outcome in outcomes)
    failed = [status for status in venice.control.statuses if status == 503]
    assert 12 <= len(failed) < 20
    assert not venice.server.blocked
    venice.control.faults.clear()
    with pytest.raises(BackendError, match="failed too often and is left alone for 30 s") as caught:
        await generated(backend, max_tokens=1)
    assert caught.value.kind is FailureKind.GONE
    assert caught.value.retry_after == pytest.approx(30, abs=2)


async def test_requests_that_venice_refuses_count_towards_the_breaker_too(
    make_backend: Any, venice: Any, fake_time: Any
) -> None:
    backend = make_backend(venice)
    await backend.load()
    venice.control.balance = 0
    for _ in range(30):
        with pytest.raises(BackendError):
            await generated(backend, max_tokens=1)
    assert venice.control.statuses == [402] * 12
    assert not venice.server.blocked


@pytest.mark.parametrize(
    ("status", "kind", "tries"),
    [
        (400, FailureKind.REFUSED, 1),
        (401, FailureKind.MISCONFIGURED, 1),
        (402, FailureKind.MISCONFIGURED, 1),
        (403, FailureKind.FORBIDDEN, 1),
        (404, FailureKind.NOT_FOUND, 1),
        (413, FailureKind.REFUSED, 1),
        (415, FailureKind.REFUSED, 1),
        (422, FailureKind.REFUSED, 1),
        (429, FailureKind.BUSY, 2),
        (500, FailureKind.GONE, 2),
        (502, FailureKind.GONE, 2),
        (503, FailureKind.GONE, 2),
        (504, FailureKind.TOO_SLOW, 2),
    ],
)
async def test_statuses_become_kinds_and_only_those_that_may_pass_are_tried_again(
    make_backend: Any, venice: Any, fake_time: Any, status: int, kind: FailureKind, tries: int
) -> None:
    backend = make_backend(venice, venice_attempts=2)
    await backend.load()
    venice.control.faults.extend([Fault(status, "because", {"x-ratelimit-remaining-requests": "9"})] * 5)
    with pytest.raises(BackendError, match=f"answers {status}: because") as caught:
        await generated(backend, max_tokens=1)
    assert caught.value.kind is kind
    assert len(venice.control.statuses) == tries


async def test_a_call_that_is_cancelled_ends_the_request_at_venice(
    backend: Any, venice: Any, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    venice.control.delay = 30
    started = time.monotonic()
    call = asyncio.create_task(generated(backend, max_tokens=1))
    await eventually(lambda: venice.control.open_now == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await eventually(lambda: venice.control.left == 1)
    assert time.monotonic() - started < 10
