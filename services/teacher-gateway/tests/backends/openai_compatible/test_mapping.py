"""Servers that write tokens without ids: rows of what is certain, or none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.teacher.v1 import teacher_pb2 as pb

from .conftest import PROMPT, MakeBackend, generated


async def test_tokens_that_are_written_as_text_are_mapped_where_that_is_certain(
    serve: Any, make_backend: MakeBackend, byte_teacher: Path
) -> None:
    stand_in, url = serve("openai", folder=byte_teacher)
    backend = make_backend(url, tokenizer_path=byte_teacher, max_sequence_length=64, max_top_k=5)
    await backend.load()
    about = backend.description
    assert (about.can_score, about.id_fidelity, about.max_top_k) == (False, pb.ID_FIDELITY_MAPPED, 5)
    pieces = [piece for seed in range(8) for piece in await generated(backend, seed=seed, max_tokens=1)]
    kept = [piece for piece in pieces if piece.finish_reason != pb.FINISH_REASON_DROPPED]
    # Bytes that are no text by themselves cannot be told apart.
    assert any("no id is certain" in piece.detail for piece in pieces if piece not in kept)
    assert kept
    expected = stand_in.logprobs(PROMPT.tolist())[-1]
    for piece in kept:
        assert piece.rows is not None
        assert piece.rows.unmapped_mass is not None
        entries = piece.rows.ids[0, : piece.rows.counts[0]]
        np.testing.assert_allclose(piece.rows.logprobs[0, : len(entries)], expected[entries], atol=1e-5)
        assert piece.rows.realised_logprobs[0] == pytest.approx(expected[piece.token_ids[0]], abs=1e-5)


async def test_bytes_tell_tokens_apart_whose_texts_are_the_same(
    serve: Any, make_backend: MakeBackend, byte_teacher: Path
) -> None:
    def edit(path: str, answer: Any) -> Any:
        for choice in answer.get("choices", []) if path == "/v1/completions" else []:
            for token in (choice["logprobs"] or {"content": []})["content"]:
                for said in (token, *token["top_logprobs"]):
                    del said["id"]
        return answer

    stand_in, url = serve("llamacpp", folder=byte_teacher, edit=edit)
    backend = make_backend(url, tokenizer_path=byte_teacher)
    await backend.load()
    assert backend.description.id_fidelity == pb.ID_FIDELITY_MAPPED
    pieces = [piece for seed in range(8) for piece in await generated(backend, seed=seed, max_tokens=1)]
    assert {piece.detail for piece in pieces} == {""}
    expected = stand_in.logprobs(PROMPT.tolist())[-1]
    for piece in pieces:
        assert piece.rows is not None
        assert piece.rows.ids[0].tolist() == np.argsort(-expected, kind="stable")[:5].tolist()
        assert piece.rows.realised_logprobs[0] == pytest.approx(expected[piece.token_ids[0]], abs=1e-5)
    assert any("\ufffd" in piece.text for piece in pieces)


@pytest.mark.parametrize("wrong", [-1, 256])
async def test_bytes_that_are_none_are_an_error(serve: Any, make_backend: MakeBackend, wrong: int) -> None:
    stand_in, url = serve("llamacpp")
    backend = make_backend(url)
    await backend.load()

    def edit(path: str, answer: Any) -> Any:
        answer["choices"][0]["logprobs"]["content"][0]["bytes"] = [wrong]
        return answer

    stand_in.edit = edit
    with pytest.raises(BackendError, match="answer to /v1/completions cannot be read") as caught:
        await generated(backend)
    assert caught.value.kind is FailureKind.BROKEN
