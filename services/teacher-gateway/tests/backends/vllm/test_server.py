"""How a vLLM server is found, waited for and refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends import build_backend
from latentforge.gateway.backends.base import Backend, BackendError, ContinuationRequest, FailureKind
from latentforge.gateway.backends.vllm.engine import VllmEngineBackend
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings

from .conftest import VOCAB, FakeVllm, MakeBackend, VllmAnswer, recorded


async def loading_fails(backend: Backend, kind: FailureKind, *words: str) -> None:
    with pytest.raises(BackendError) as caught:
        await backend.load()
    for word in words:
        assert word in str(caught.value)
    assert caught.value.kind is kind
    await backend.close()


async def test_it_is_described_by_what_the_server_says_and_the_folder_holds(
    make_backend: MakeBackend, server: FakeVllm
) -> None:
    backend = make_backend(vllm_remote_url=f"{server.url}/v1/", vllm_remote_api_key="sesame", vllm_quantization="awq")
    await backend.load()
    about = backend.description
    assert (about.backend, about.model, about.engine) == ("vllm-remote", "tiny", "vllm 0.32.0")
    assert (about.vocab_size, about.max_sequence_length, about.max_top_k) == (VOCAB, 255, 64)
    assert about.quantization == "awq"
    assert about.can_score
    assert all(headers["Authorization"] == "Bearer sesame" for _, _, headers in server.asked)
    await backend.close()


async def test_the_revision_changes_with_what_may_change_the_rows(make_backend: MakeBackend, server: FakeVllm) -> None:
    async def revision(change: Any = None, **settings: Any) -> str:
        server.change = change or (lambda path, asked, answer: answer)
        backend = make_backend(**settings)
        await backend.load()
        await backend.close()
        return backend.description.revision

    def replaced(at: str, old: bytes, new: bytes) -> Any:
        return lambda path, asked, answer: (answer[0], answer[1].replace(old, new)) if path == at else answer

    known = await revision()
    assert await revision(replaced("/v1/models", b'"created":', b'"created":1')) == known
    others = [
        await revision(replaced("/v1/models", b'"root":"', b'"root":"/other')),
        await revision(replaced("/version", b"0.32.0", b"0.33.0")),
        await revision(replaced("/v1/completions", b'"system_fingerprint": "f"', b'"system_fingerprint": "g"')),
        await revision(vllm_revision="2"),
    ]
    assert len({known, *others}) == 5


async def test_a_server_that_shows_v1_only_is_enough(make_backend: MakeBackend, server: FakeVllm) -> None:
    server.change = lambda path, asked, answer: (404, b"{}") if path == "/version" else answer
    backend = make_backend()
    await backend.load()
    assert backend.description.engine == "vllm"
    await backend.close()


async def test_a_version_that_is_known_to_be_bad_is_refused(make_backend: MakeBackend, server: FakeVllm) -> None:
    server.change = lambda path, asked, answer: (200, b'{"version": "0.10.2"}') if path == "/version" else answer
    await loading_fails(make_backend(), FailureKind.MISCONFIGURED, "vLLM 0.10.2 at VLLM_REMOTE_URL", "vLLM 0.32.0")


async def test_sampling_is_never_left_to_the_server(make_backend: MakeBackend, server: FakeVllm) -> None:
    backend = make_backend()
    await backend.load()
    await backend.score([np.array([1, 2, 3], np.uint32)], 2)
    stop, ends = ("stop", "<|im_end|>"), frozenset({0, 3})
    request = ContinuationRequest(np.array([1, 2], np.uint32), 3, 0.7, 0.9, 11, 2, 2, stop, end_ids=ends)
    pieces = [piece async for piece in backend.generate(request)]
    assert {piece.index for piece in pieces} == {0, 1}
    asked = [what for path, what, _ in server.asked if path == "/v1/completions"]
    for what in asked:
        assert what["top_k"] == -1
        assert what["min_p"] == 0
        assert what["repetition_penalty"] == 1
        assert what["add_special_tokens"] is False
        assert {"temperature", "top_p"} <= set(what)
    generations = [what for what in asked if what["max_tokens"] == 3]
    assert len(generations) == 2
    assert {(w["temperature"], w["top_p"], w["max_tokens"], w["logprobs"]) for w in generations} == {(0.7, 0.9, 3, 2)}
    assert all(w["stop"] == ["stop"] and w["stop_token_ids"] == [0, 3] for w in generations)
    assert len({w["seed"] for w in generations}) == 2
    await backend.close()


async def test_many_sequences_go_in_one_request(make_backend: MakeBackend, server: FakeVllm) -> None:
    backend = make_backend()
    await backend.load()
    before = len(server.asked)
    sequences = [np.arange(2, 2 + n, dtype=np.uint32) for n in (2, 7, 30)]
    answers = await backend.score(sequences, 3)
    assert len(server.asked) == before + 1
    assert [len(rows) for rows in answers] == [1, 6, 29]
    for rows, ids in zip(answers, sequences, strict=True):
        assert rows.realised_ranks.tolist() == (ids[1:] + 1).tolist()
    await backend.close()


async def test_a_refused_request_says_why(make_backend: MakeBackend, server: FakeVllm) -> None:
    backend = make_backend()
    await backend.load()
    server.change = lambda path, asked, answer: recorded("unknown_id")
    with pytest.raises(BackendError, match="Token id 300 is out of vocabulary") as caught:
        await backend.score([np.array([1, 299], np.uint32)], 2)
    assert caught.value.kind is FailureKind.REFUSED
    await backend.close()


async def test_a_sequence_that_breaks_the_servers_answer_is_broken_at_once_and_opens_no_breaker(
    make_backend: MakeBackend, server: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend()
    await backend.load()
    good, answer, asked = np.array([5, 6, 7], np.uint32), server.answer, []

    def poisoned(path: str, payload: dict[str, Any], headers: dict[str, str]) -> tuple[int, bytes]:
        if any(66 in ids for ids in payload.get("prompt", [])):
            asked.append(payload)
            text = "Out of range float values are not JSON compliant: nan"
            return 500, json.dumps({"error": {"message": text, "type": "InternalServerError", "code": 500}}).encode()
        return answer(path, payload, headers)

    monkeypatch.setattr(server, "answer", poisoned)
    for attempt in range(12):
        with pytest.raises(BackendError, match="answers 500: Out of range float") as caught:
            await backend.score([good, np.array([5, 66, 7], np.uint32)], 2)
        assert caught.value.kind is FailureKind.BROKEN
        assert len(asked) == attempt + 1
    assert len(await backend.score([good], 2)) == 1
    await backend.close()


@pytest.mark.parametrize(
    "body",
    [b"", b"Internal Server Error", b'{"error": {"message": "EngineCore encountered an issue. See stack trace"}}'],
)
async def test_a_500_of_a_dying_engine_is_an_outage(
    make_backend: MakeBackend, server: FakeVllm, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    backend = make_backend()
    await backend.load()
    monkeypatch.setattr(server, "answer", lambda path, payload, headers: (500, body))
    with pytest.raises(BackendError) as caught:
        await backend.score([np.array([5, 6, 7], np.uint32)], 2)
    assert caught.value.kind is FailureKind.GONE
    # Or is it the sequence? Whoever has several asks for each alone, and no breaker keeps him from it.
    assert caught.value.one_may_cause
    monkeypatch.undo()
    assert len(await backend.score([np.array([5, 6, 7], np.uint32)], 2)) == 1
    await backend.close()


async def test_an_unset_tokenizer_is_refused_with_what_to_set(make_backend: MakeBackend) -> None:
    with pytest.raises(SettingsError, match="TOKENIZER_PATH is not set"):
        await make_backend(tokenizer_path=None).load()


async def test_a_folder_without_a_tokenizer_or_config_is_refused(
    make_backend: MakeBackend, tmp_path: Path, random_teacher: Path
) -> None:
    with pytest.raises(SettingsError, match=r"TOKENIZER_PATH=.* has no tokenizer\.json"):
        await make_backend(tokenizer_path=tmp_path).load()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((random_teacher / name).read_bytes())
    await loading_fails(make_backend(tokenizer_path=tmp_path), FailureKind.MISCONFIGURED, "no config.json", "wide")
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    await loading_fails(make_backend(tokenizer_path=tmp_path), FailureKind.MISCONFIGURED, "no vocab_size")
    (tmp_path / "config.json").write_text("not json")
    await loading_fails(
        make_backend(tokenizer_path=tmp_path), FailureKind.MISCONFIGURED, "TOKENIZER_PATH", "not a readable config.json"
    )


async def test_another_tokenizer_is_refused_and_both_are_named(make_backend: MakeBackend, server: FakeVllm) -> None:
    backend = make_backend()
    server.tokenize = lambda text: [*backend.tokenizer.encode(text, parse_special_tokens=True)[:-1], 7]
    await loading_fails(backend, FailureKind.MISCONFIGURED, "TOKENIZER_PATH", "is not the tokenizer of tiny", "there")


async def test_an_unlisted_model_is_refused_with_those_that_are(make_backend: MakeBackend) -> None:
    backend = make_backend(vllm_served_model="big")
    await loading_fails(backend, FailureKind.MISCONFIGURED, "VLLM_SERVED_MODEL=big", "lists: tiny")


async def test_more_entries_than_the_server_gives_are_refused(make_backend: MakeBackend, server: FakeVllm) -> None:
    refusal = recorded("too_many_logprobs")
    server.change = lambda path, asked, answer: refusal if path == "/v1/completions" else answer
    await loading_fails(make_backend(max_top_k=65), FailureKind.MISCONFIGURED, "MAX_TOP_K", "--max-logprobs 65")


async def test_a_longer_limit_than_the_server_has_is_refused(make_backend: MakeBackend) -> None:
    backend = make_backend(max_sequence_length=256)
    await loading_fails(backend, FailureKind.MISCONFIGURED, "MAX_SEQUENCE_LENGTH=256 is more than 255")


async def test_processed_logprobs_are_refused(make_backend: MakeBackend, server: FakeVllm) -> None:
    def processed(path: str, asked: dict[str, Any], answer: VllmAnswer) -> VllmAnswer:
        if path != "/v1/completions" or not asked.get("logprobs"):
            return answer
        body = json.loads(answer[1])
        logprobs = body["choices"][0]["logprobs"]
        # Halved and normalised, as a temperature of 2 leaves them.
        logprobs["top_logprobs"] = [{k: v / 2 - 2.5 for k, v in row.items()} for row in logprobs["top_logprobs"]]
        return 200, json.dumps(body).encode()

    server.change = processed
    await loading_fails(make_backend(), FailureKind.MISCONFIGURED, "--logprobs-mode raw_logprobs")


async def test_a_wrong_key_is_refused_with_its_setting(make_backend: MakeBackend, server: FakeVllm) -> None:
    server.change = lambda path, asked, answer: (401, b'{"error": "Unauthorized"}')
    backend = make_backend(vllm_remote_api_key="wrong-key", vllm_start_seconds=60)
    with pytest.raises(BackendError) as caught:
        await backend.load()
    assert "VLLM_REMOTE_API_KEY" in str(caught.value)
    assert "wrong-key" not in str(caught.value)
    assert caught.value.kind is FailureKind.MISCONFIGURED
    await backend.close()


async def test_something_else_at_the_address_is_refused(make_backend: MakeBackend, server: FakeVllm) -> None:
    server.change = lambda path, asked, answer: (200, b'{"data": [{"name": "x"}]}')
    await loading_fails(make_backend(), FailureKind.MISCONFIGURED, "VLLM_REMOTE_URL", "not vLLM's list of models")


async def test_a_server_that_is_not_there_is_waited_for_and_then_given_up(
    make_backend: MakeBackend, free_port: Callable[[], int]
) -> None:
    backend = make_backend(vllm_remote_url=f"http://127.0.0.1:{free_port()}")
    await loading_fails(backend, FailureKind.GONE, "VLLM_REMOTE_URL", "cannot be reached", "start it")


async def test_a_server_that_is_starting_is_waited_for(
    make_backend: MakeBackend, server: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentforge.gateway.backends.waiting._SECONDS_BETWEEN_LOOKS", 0.01)
    left = iter([503, 503, 502])
    server.change = lambda path, asked, answer: (next(left, 200), answer[1])
    backend = make_backend(vllm_start_seconds=10)
    await backend.load()
    assert next(left, None) is None
    await backend.close()


def test_an_unset_address_is_refused() -> None:
    with pytest.raises(SettingsError, match="VLLM_REMOTE_URL is not set"):
        build_backend(GatewaySettings(teacher_backend="vllm-remote"), Metrics())


def test_the_local_mode_chooses_between_a_server_and_an_engine(random_teacher: Path) -> None:
    settings: dict[str, Any] = {"teacher_backend": "vllm-local", "vllm_local_mode": "in-process"}
    with pytest.raises(SettingsError, match="VLLM_LOCAL_MODEL is not set"):
        build_backend(GatewaySettings(**settings), Metrics())
    backend = build_backend(GatewaySettings(**settings, vllm_local_model=str(random_teacher)), Metrics())
    assert isinstance(backend, VllmEngineBackend)


async def test_an_engine_without_vllm_is_refused_with_the_way_out(random_teacher: Path) -> None:
    settings = GatewaySettings(
        teacher_backend="vllm-local", vllm_local_mode="in-process", vllm_local_model=str(random_teacher)
    )
    backend = build_backend(settings, Metrics())
    await loading_fails(backend, FailureKind.MISCONFIGURED, "vllm cannot be imported here", "VLLM_LOCAL_MODE=server")
