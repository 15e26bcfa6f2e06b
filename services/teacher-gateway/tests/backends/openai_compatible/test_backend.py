"""Each kind of server, asked in its own way: rows are the model's, or there are none."""

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends import build_backend
from latentforge.gateway.backends.base import Backend, BackendError, FailureKind
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher.v1 import teacher_pb2 as pb

from .conftest import CONTEXT, PROMPT, MakeBackend, Refused, generated

SCORING = ["sglang", "ids", "vllm"]


async def loading_fails(backend: Backend, kind: FailureKind, *words: str) -> None:
    with pytest.raises(BackendError) as caught:
        await backend.load()
    for word in words:
        assert word in str(caught.value)
    assert caught.value.kind is kind


@pytest.mark.parametrize("kind", SCORING)
async def test_rows_of_given_tokens_are_the_models_to_the_id(serve: Any, make_backend: MakeBackend, kind: str) -> None:
    stand_in, url = serve(kind)
    backend = make_backend(url, max_sequence_length=100)
    await backend.load()
    about = backend.description
    assert (about.can_score, about.id_fidelity, about.logprobs_mode) == (
        True,
        pb.ID_FIDELITY_EXACT,
        pb.LOGPROBS_MODE_RAW,
    )
    assert (about.backend, about.model, about.max_top_k, about.vocab_size) == ("openai-compatible", "tiny", 20, 300)
    # Ids that are no token's, and one that comes twice.
    sequences = [np.random.default_rng(n).integers(0, 300, n).astype(np.uint32) for n in (40, 2, 17)]
    answers = await backend.score(sequences, 7)
    for token_ids, rows in zip(sequences, answers, strict=True):
        expected = stand_in.logprobs(token_ids.tolist())[:-1]
        order = np.argsort(-expected, axis=1, kind="stable")
        assert (len(rows), rows.top_k, rows.first_position) == (len(token_ids) - 1, 7, 1)
        np.testing.assert_array_equal(rows.ids, order[:, :7])
        np.testing.assert_allclose(rows.logprobs, -np.sort(-expected, axis=1)[:, :7], atol=1e-5)
        own = np.take_along_axis(expected, token_ids[1:, None].astype(np.int64), axis=1)[:, 0]
        np.testing.assert_allclose(rows.realised_logprobs, own, atol=1e-5)
        ranks = 1 + (expected > own[:, None]).sum(1)
        # Beyond the entries it may be unknown.
        known = rows.realised_ranks > 0
        np.testing.assert_array_equal(rows.realised_ranks[known], ranks[known])
        assert np.all(known | (ranks > 7))


@pytest.mark.parametrize("kind", [*SCORING, "llamacpp"])
async def test_a_continuation_has_the_models_rows_for_its_own_tokens(
    serve: Any, make_backend: MakeBackend, kind: str
) -> None:
    stand_in, url = serve(kind)
    backend = make_backend(url, max_sequence_length=100)
    await backend.load()
    pieces = await generated(backend, n=3, temperature=1.3)
    assert [piece.index for piece in pieces] == [0, 1, 2]
    assert len({tuple(piece.token_ids) for piece in pieces}) > 1
    for piece in pieces:
        assert piece.rows is not None
        expected = stand_in.logprobs([*PROMPT.tolist(), *piece.token_ids])[len(PROMPT) - 1 : -1]
        assert piece.rows.first_position == len(PROMPT)
        np.testing.assert_allclose(piece.rows.logprobs, -np.sort(-expected, axis=1)[:, :5], atol=1e-5)
        np.testing.assert_array_equal(piece.rows.ids[:, 0], expected.argmax(1))
        # Its text is of our tokenizer's making.
        shown = [i for i in piece.token_ids if i not in backend.tokenizer.special_ids]
        assert piece.text == backend.tokenizer.decode(shown, goes_on=True)
    assert await generated(backend, top_k=0, n=1, seed=5) == await generated(backend, top_k=0, n=1, seed=5)


@pytest.mark.parametrize("kind", [*SCORING, "llamacpp"])
async def test_a_token_that_ends_a_text_is_among_its_ids_and_not_in_its_text(
    serve: Any, make_backend: MakeBackend, kind: str
) -> None:
    _, url = serve(kind)
    backend = make_backend(url, max_sequence_length=100)
    await backend.load()
    ended = []
    for seed in range(8):
        (piece,) = await generated(backend, seed=seed, max_tokens=90, temperature=30.0)
        if piece.finish_reason == pb.FINISH_REASON_STOP:
            ended.append(piece)
            assert piece.token_ids[-1] == 0
            assert "<|endoftext|>" not in piece.text
            assert piece.rows is not None
            assert len(piece.rows) == len(piece.token_ids)
        else:
            assert piece.finish_reason == pb.FINISH_REASON_LENGTH
            assert len(piece.token_ids) == 90
    assert ended


async def test_a_text_ends_where_the_server_cut_it_though_tokens_of_the_stop_string_are_left_out(
    serve: Any, make_backend: MakeBackend
) -> None:
    stand_in, url = serve("llamacpp")
    backend = make_backend(url)
    await backend.load()

    def edit(path: str, answer: Any) -> Any:
        # " word" is one token, of which the stop string is "word": the blank before it is in the text, and in no token.
        answer["choices"][0] |= {"text": answer["choices"][0]["text"] + " ", "finish_reason": "stop"}
        return answer

    (whole,) = await generated(backend, max_tokens=4)
    stand_in.edit = edit
    (cut,) = await generated(backend, max_tokens=4)
    assert cut.token_ids == whole.token_ids
    assert cut.text == whole.text + " "


async def test_what_gives_no_rows_of_a_prompt_by_id_continues_and_does_not_score(
    serve: Any, make_backend: MakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    _, url = serve("llamacpp")
    backend = make_backend(url)
    with caplog.at_level(logging.INFO):
        await backend.load()
    about = backend.description
    assert (about.can_score, about.can_generate, about.chat_prompts_only) == (False, True, False)
    assert (about.id_fidelity, about.logprobs_mode) == (pb.ID_FIDELITY_EXACT, pb.LOGPROBS_MODE_RAW)
    assert (about.max_sequence_length, about.engine) == (127, "llamacpp b1-local")
    assert "gives no log-probabilities of a prompt by token id" in caplog.text


async def test_logprobs_after_temperature_are_said_to_be_processed(serve: Any, make_backend: MakeBackend) -> None:
    _, url = serve("llamacpp", tempered=True)
    backend = make_backend(url)
    await backend.load()
    assert backend.description.logprobs_mode == pb.LOGPROBS_MODE_PROCESSED


async def test_a_server_without_logprobs_is_refused(serve: Any, make_backend: MakeBackend) -> None:
    _, url = serve("mute")
    backend = make_backend(url, max_sequence_length=64)
    await loading_fails(backend, FailureKind.MISCONFIGURED, "OPENAI_COMPATIBLE_URL gives no log-probabilities", "tiny")


async def test_more_entries_than_a_server_takes_say_what_to_set(
    serve: Any, make_backend: MakeBackend, byte_teacher: Path
) -> None:
    _, url = serve("openai", folder=byte_teacher)
    backend = make_backend(url, tokenizer_path=byte_teacher, max_sequence_length=64, max_top_k=6)
    await loading_fails(backend, FailureKind.MISCONFIGURED, "does not support logprobs > 5", "set MAX_TOP_K")


@pytest.mark.parametrize("kind", ["sglang", "llamacpp", "vllm"])
async def test_another_tokenizer_is_refused(serve: Any, make_backend: MakeBackend, kind: str) -> None:
    def edit(path: str, answer: Any) -> Any:
        return {"tokens": [*answer["tokens"][:-1], 7]} if path == "/tokenize" else answer

    _, url = serve(kind, edit=edit)
    await loading_fails(make_backend(url), FailureKind.MISCONFIGURED, "TOKENIZER_PATH", "is not the tokenizer of tiny")


async def test_a_token_of_other_bytes_is_another_tokenizers(serve: Any, make_backend: MakeBackend) -> None:
    def edit(path: str, answer: Any) -> Any:
        if path == "/tokenize":
            return {}
        if path == "/v1/completions" and answer["choices"][0]["logprobs"]:
            answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"][1]["bytes"] = [1, 2, 3]
        return answer

    _, url = serve("llamacpp", edit=edit)
    await loading_fails(make_backend(url), FailureKind.MISCONFIGURED, "TOKENIZER_PATH", "here and", "there")


async def test_a_server_that_puts_tokens_before_a_prompt_is_found_out(serve: Any, make_backend: MakeBackend) -> None:
    def edit(path: str, answer: Any) -> Any:
        if path == "/v1/completions":
            answer["usage"]["prompt_tokens"] += 1
        return answer

    _, url = serve("llamacpp", edit=edit)
    await loading_fails(make_backend(url), FailureKind.BROKEN, "it changes prompts")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda meta: meta["input_token_logprobs"].pop(), "not of the 3 tokens"),
        (lambda meta: meta["input_token_logprobs"][1].__setitem__(1, 9), "not of the 3 tokens"),
        (lambda meta: meta["input_token_logprobs"][1].__setitem__(0, None), "no number for id"),
        (lambda meta: meta["input_top_logprobs"].pop(), "has 2 entries for 3 tokens"),
        (lambda meta: meta["input_top_logprobs"][2].pop(), "one is needed for each of 4"),
        (lambda meta: meta["input_top_logprobs"].__setitem__(2, None), "one is needed for each of 4"),
        (lambda meta: meta["input_top_logprobs"][2][0].__setitem__(0, 1.5), "sum to"),
        (lambda meta: meta["input_top_logprobs"][2][0].__setitem__(1, 300), "ids are 0 to 299"),
        (lambda meta: meta.pop("input_top_logprobs"), "is missing"),
    ],
)
async def test_sglangs_rows_that_cannot_be_right_are_an_error(
    serve: Any, make_backend: MakeBackend, change: Callable[[Any], Any], words: str
) -> None:
    stand_in, url = serve("sglang")
    backend = make_backend(url)
    await backend.load()

    def edit(path: str, answer: Any) -> Any:
        change(answer[0]["meta_info"])
        return answer

    stand_in.edit = edit
    with pytest.raises(BackendError, match=words) as caught:
        await backend.score([np.array([200, 201, 202], np.uint32)], 4)
    assert caught.value.kind is FailureKind.BROKEN


async def test_a_key_is_sent_and_a_wrong_one_is_refused_with_its_setting(serve: Any, make_backend: MakeBackend) -> None:
    _, url = serve("sglang")
    good = make_backend(f"{url}/v1/", openai_compatible_api_key="sk-very-secret")
    await good.load()
    bad = make_backend(url, openai_compatible_api_key="sk-wrong-secret")
    with pytest.raises(BackendError, match="set OPENAI_COMPATIBLE_API_KEY") as caught:
        await bad.load()
    assert "sk-wrong" not in str(caught.value)


async def test_the_revision_changes_with_what_is_said_of_the_weights(serve: Any, make_backend: MakeBackend) -> None:
    stand_in, url = serve("sglang")

    async def revision(**changes: Any) -> str:
        backend = make_backend(url, **changes)
        await backend.load()
        return backend.description.revision

    first = await revision()
    assert await revision() == first
    assert await revision(openai_compatible_revision="2") != first
    stand_in.edit = lambda path, answer: answer | {"weight_version": "2"} if path == "/get_model_info" else answer
    assert await revision() != first


@pytest.mark.parametrize("kind", ["sglang", "ids"])
async def test_another_models_rows_under_the_same_name_are_refused(
    serve: Any, make_backend: MakeBackend, kind: str
) -> None:
    stand_in, url = serve(kind)
    backend = make_backend(url, max_sequence_length=100)
    await backend.load()
    ids = [np.array([200, 201, 202], np.uint32)]
    (first,) = await backend.score(ids, 4)
    # Weights are in no list, but a server that is started anew has new connections.
    stand_in.closes = True
    await backend.score(ids, 4)
    stand_in.load(stand_in.folder, noise=0.3)
    with pytest.raises(BackendError, match=r"another teacher than at the gateway's start.* nats") as caught:
        await backend.score(ids, 4)
    assert caught.value.kind is FailureKind.CHANGED
    with pytest.raises(BackendError, match="another teacher"):
        await backend.check()
    stand_in.load(stand_in.folder)
    (again,) = await backend.score(ids, 4)
    np.testing.assert_array_equal(again.logprobs, first.logprobs)
    await backend.check()


@pytest.mark.parametrize("lists_another", [True, False])
async def test_another_servers_refusals_are_not_the_teachers(
    serve: Any, make_backend: MakeBackend, lists_another: bool
) -> None:
    """It may know fewer tokens; to its caller a refusal would say that the request is wrong."""
    stand_in, url = serve("sglang")
    backend = make_backend(url)
    await backend.load()

    def edit(path: str, answer: Any) -> Any:
        if path == "/generate":
            raise Refused(400, {"message": "the request has ids out of vocabulary"})
        if path == "/v1/models" and lists_another:
            answer["data"][0]["root"] = "other"
        return answer

    stand_in.edit = edit
    # As a server that was started anew, it has new connections.
    stand_in.closes = True
    with pytest.raises(BackendError):
        await backend.score([PROMPT], 4)
    for ask in (lambda: backend.score([PROMPT], 4), lambda: generated(backend)):
        with pytest.raises(BackendError, match="another teacher than at the gateway's start") as caught:
            await ask()
        assert caught.value.kind is FailureKind.CHANGED


async def test_a_server_that_lists_another_model_is_unhealthy_and_not_believed(
    serve: Any, make_backend: MakeBackend
) -> None:
    stand_in, url = serve("llamacpp")
    backend = make_backend(url)
    await backend.load()
    await backend.check()
    stand_in.edit = lambda path, answer: _with(answer, n_ctx_train=1024) if path == "/v1/models" else answer
    with pytest.raises(BackendError, match=r"another teacher .*1024.* was .*512") as caught:
        await backend.check()
    assert caught.value.kind is FailureKind.CHANGED


@pytest.mark.parametrize("kind", ["sglang", "llamacpp"])
async def test_a_list_that_holds_something_new_in_each_answer_is_of_the_same_server(
    serve: Any, make_backend: MakeBackend, kind: str
) -> None:
    stand_in, url = serve(kind)
    numbers = itertools.count()

    def edit(path: str, answer: Any) -> Any:
        if path != "/v1/models":
            return answer
        number = next(numbers)
        permission = {"id": f"modelperm-{number}", "object": "model_permission", "created": number}
        answer["data"][0] |= {"created": number, "permission": [permission], "last_used": number}
        return _with(answer, loaded_at=number) if kind == "llamacpp" else answer

    stand_in.edit = edit
    first, second = make_backend(url), make_backend(url)
    await first.load()
    await second.load()
    await first.check()
    assert first.description.revision == second.description.revision
    assert next(numbers) > 2


@pytest.mark.parametrize(
    ("name", "value"), [("root", "/models/other"), ("owned_by", "other"), ("max_model_len", CONTEXT - 1)]
)
async def test_what_lasts_of_a_list_tells_servers_apart(
    serve: Any, make_backend: MakeBackend, name: str, value: Any
) -> None:
    stand_in, url = serve("sglang")
    first, second = make_backend(url), make_backend(url)
    await first.load()

    def edit(path: str, answer: Any) -> Any:
        if path == "/v1/models":
            answer["data"][0][name] = value
        return answer

    stand_in.edit = edit
    with pytest.raises(BackendError, match=f"another teacher .*{name}={value}"):
        await first.check()
    await second.load()
    assert first.description.revision != second.description.revision


def _with(answer: Any, **meta: Any) -> Any:
    answer["data"][0]["meta"] |= meta
    return answer


async def test_lengths_and_names_are_checked(serve: Any, make_backend: MakeBackend) -> None:
    _, url = serve("sglang")
    await loading_fails(
        make_backend(url, max_sequence_length=128), FailureKind.MISCONFIGURED, "MAX_SEQUENCE_LENGTH=128", "127"
    )
    await loading_fails(
        make_backend(url, openai_compatible_model="big"), FailureKind.MISCONFIGURED, "OPENAI_COMPATIBLE_MODEL=big"
    )
    _, silent = serve("ids")
    await loading_fails(make_backend(silent), FailureKind.MISCONFIGURED, "set MAX_SEQUENCE_LENGTH")
    await loading_fails(make_backend(f"{url}/nowhere"), FailureKind.NOT_FOUND, "answers 404")


def test_settings_that_are_missing_are_named(random_teacher: Path) -> None:
    with pytest.raises(SettingsError, match="OPENAI_COMPATIBLE_URL is not set"):
        build_backend(GatewaySettings(teacher_backend="openai-compatible", tokenizer_path=random_teacher), Metrics())
    settings = GatewaySettings(teacher_backend="openai-compatible", openai_compatible_url="http://127.0.0.1:1")
    with pytest.raises(SettingsError, match="TOKENIZER_PATH is not set"):
        build_backend(settings, Metrics())


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
async def test_closing_closes_the_way_that_was_found_too(serve: Any, make_backend: MakeBackend, kind: str) -> None:
    _, url = serve(kind)
    backend = make_backend(url, max_sequence_length=100)
    await backend.load()
    await backend.close()
    with pytest.raises(RuntimeError, match="client has been closed"):
        await backend.score([PROMPT], 4)


async def test_what_was_not_loaded_closes(serve: Any, make_backend: MakeBackend) -> None:
    _, url = serve("mute")
    backend = make_backend(url)
    await backend.close()
