import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends import build_backend
from latentforge.gateway.backends.base import BackendError
from latentforge.gateway.backends.local.backend import TransformersBackend
from latentforge.gateway.metrics import Metrics
from latentforge.teacher_client.sparse_rows import SparseRows


def ids_of(seed: int, length: int, vocab_size: int) -> Any:
    return np.random.default_rng(seed).integers(0, vocab_size, length).astype(np.uint32)


def assert_rows_are(rows: SparseRows, logprobs_nv: Any, token_ids: Any, k: int) -> None:
    """Compares with full float64 distributions, [L−1, v], FOR tokens 1 … L−1."""
    n = len(token_ids) - 1
    assert (len(rows), rows.top_k, rows.first_position) == (n, k, 1)
    expected_nk = -np.sort(-logprobs_nv, axis=1)[:, :k]
    np.testing.assert_allclose(rows.logprobs, expected_nk, atol=2e-4)
    at_ids = np.take_along_axis(logprobs_nv, rows.ids.astype(np.int64), axis=1)
    np.testing.assert_allclose(rows.logprobs, at_ids, atol=2e-4)
    assert all(len(set(row)) == k for row in rows.ids.tolist())
    realised = logprobs_nv[np.arange(n), token_ids[1:].astype(np.int64)]
    np.testing.assert_allclose(rows.realised_logprobs, realised, atol=2e-4)
    # Float32 may swap neighbours that float64 tells apart.
    least = 1 + (logprobs_nv > realised[:, None] + 1e-4).sum(1)
    most = 1 + (logprobs_nv > realised[:, None] - 1e-4).sum(1)
    assert np.all((least <= rows.realised_ranks) & (rows.realised_ranks <= most))
    np.testing.assert_allclose(rows.tail_mass, 1 - np.exp(expected_nk).sum(1), atol=1e-5)
    assert np.all(rows.counts == k)


async def test_row_r_is_the_distribution_for_token_first_position_plus_r(
    make_settings: Callable[..., Any], known_teacher: Any
) -> None:
    teacher = build_backend(make_settings(embedded_teacher_path=known_teacher.folder), Metrics())
    await teacher.load()
    token_ids = ids_of(0, 40, 64)
    (rows,) = await teacher.score([token_ids], 5)
    await teacher.close()
    before = token_ids[rows.first_position - 1 : rows.first_position - 1 + len(rows)].astype(np.int64)
    assert_rows_are(rows, known_teacher.logprobs[before], token_ids, 5)
    # The same check must refuse rows that are one position early or late, or the test says nothing.
    for shift in (-1, 1):
        shifted = np.roll(known_teacher.logprobs[before], shift, axis=0)
        with pytest.raises(AssertionError):
            assert_rows_are(rows, shifted, token_ids, 5)


@pytest.mark.parametrize("max_batch_tokens", [1, 64, 4096])
async def test_batches_of_mixed_lengths_equal_a_float64_reference(
    make_settings: Callable[..., Any], random_teacher: Path, reference: Callable[..., Any], max_batch_tokens: int
) -> None:
    teacher = build_backend(make_settings(max_batch_tokens=max_batch_tokens), Metrics())
    await teacher.load()
    sequences = [ids_of(i, length, 300) for i, length in enumerate([7, 2, 31, 12, 31, 3])]
    answers = await teacher.score(sequences, 20)
    await teacher.close()
    for token_ids, rows in zip(sequences, answers, strict=True):
        assert_rows_are(rows, reference(random_teacher, token_ids.tolist()), token_ids, 20)


async def test_position_chunks_change_nothing(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    token_ids = ids_of(3, 50, 300)
    (whole,) = await backend.score([token_ids], 8)
    # 7 rows of 300 float32 logits
    monkeypatch.setattr("latentforge.gateway.backends.local.topk._CHUNK_BYTES", {"cpu": 4 * 300 * 7})
    (chunked,) = await backend.score([token_ids], 8)
    np.testing.assert_array_equal(whole.ids, chunked.ids)
    np.testing.assert_allclose(whole.logprobs, chunked.logprobs, atol=1e-5)
    np.testing.assert_array_equal(whole.realised_ranks, chunked.realised_ranks)


async def test_revision_changes_with_weights_and_with_configuration(
    make_settings: Callable[..., Any], random_teacher: Path, tmp_path: Path
) -> None:
    revisions = set()
    for name, change in (("same", None), ("weights", "weights"), ("config", "config")):
        folder = tmp_path / name
        shutil.copytree(random_teacher, folder)
        if change == "weights":
            model = Qwen3ForCausalLM.from_pretrained(folder)
            with torch.no_grad():
                model.lm_head.weight[0, 0] += 1
            model.save_pretrained(folder)
        elif change == "config":
            text = (folder / "config.json").read_text()
            (folder / "config.json").write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
        teacher = build_backend(make_settings(embedded_teacher_path=folder), Metrics())
        await teacher.load()
        revisions.add(teacher.description.revision)
        await teacher.close()
    assert len(revisions) == 3


async def test_output_layers_that_scale_or_cap_their_logits_are_honoured(
    make_settings: Callable[..., Any], random_teacher: Path, tmp_path: Path
) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        initializer_range=1.0,
        final_logit_softcapping=5.0,
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((random_teacher / name).read_bytes())
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    teacher = TransformersBackend(make_settings(), str(tmp_path), "TEACHER_MODEL", hub=True)
    await teacher.load()
    token_ids = ids_of(0, 20, 300)
    (rows,) = await teacher.score([token_ids], 10)
    await teacher.close()
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(token_ids.astype(np.int64))[None]).logits[0, :-1].log_softmax(-1).numpy()
    assert_rows_are(rows, expected, token_ids, 10)


async def test_logits_that_are_not_finite_are_an_error_and_no_rows(
    make_settings: Callable[..., Any], random_teacher: Path, tmp_path: Path
) -> None:
    shutil.copytree(random_teacher, tmp_path, dirs_exist_ok=True)
    model = Qwen3ForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        model.lm_head.weight[200, 0] = float("nan")
    model.save_pretrained(tmp_path)
    teacher = build_backend(make_settings(embedded_teacher_path=tmp_path), Metrics())
    await teacher.load()
    with pytest.raises(BackendError, match="not finite"):
        await teacher.score([ids_of(0, 5, 300)], 4)
    await teacher.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedded_teacher_path": "nowhere"}, "EMBEDDED_TEACHER_PATH=nowhere is no folder"),
        ({"embedded_teacher_path": "."}, "has no config.json and no [*].safetensors"),
        (
            {"teacher_backend": "transformers", "teacher_model": "/nowhere"},
            "TEACHER_MODEL=/nowhere is no folder; give one .* or a hub id",
        ),
        ({"max_sequence_length": 1000}, "MAX_SEQUENCE_LENGTH=1000 is more than the 512"),
    ],
)
async def test_a_teacher_that_cannot_be_loaded_says_what_to_set(
    make_settings: Callable[..., Any], changes: dict[str, Any], message: str
) -> None:
    teacher = build_backend(make_settings(**changes), Metrics())
    with pytest.raises(BackendError, match=message):
        await teacher.load()
    await teacher.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
async def test_a_gpu_that_is_not_there_is_named(make_settings: Callable[..., Any]) -> None:
    teacher = build_backend(make_settings(teacher_device="cuda:0"), Metrics())
    with pytest.raises(SettingsError, match=r"TEACHER_DEVICE is 'cuda:0', but of CUDA devices torch finds none"):
        await teacher.load()
    await teacher.close()
