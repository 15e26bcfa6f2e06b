"""Teachers of other families than the usual decoder: real models of transformers with random weights."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    LlamaConfig,
    LlavaConfig,
    MambaConfig,
    PretrainedConfig,
    Qwen3NextConfig,
    Qwen3VLConfig,
    RwkvConfig,
    SiglipVisionConfig,
)

from latentforge.gateway.backends.base import BackendError, ContinuationRequest
from latentforge.gateway.backends.local.backend import TransformersBackend
from latentforge.gateway.main import Gateway
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1.teacher_pb2_grpc import TeacherServiceStub
from latentforge.teacher_client.sparse_rows import join_rows

VOCAB = 300
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
_EYE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": 28,
}
_MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def gemma3() -> Gemma3Config:
    eye = SiglipVisionConfig(**_EYE, num_hidden_layers=1)
    return Gemma3Config(text_config={**TEXT, "query_pre_attn_scalar": 16}, vision_config=eye, mm_tokens_per_image=4)


def llava() -> LlavaConfig:
    eye = SiglipVisionConfig(**_EYE, num_hidden_layers=1)
    return LlavaConfig(text_config=LlamaConfig(**TEXT), vision_config=eye, image_token_index=299)


def qwen3_vl() -> Qwen3VLConfig:
    eye: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 32,
    }
    eye |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    tokens: dict[str, Any] = {
        "image_token_id": 290,
        "video_token_id": 291,
        "vision_start_token_id": 292,
        "vision_end_token_id": 293,
    }
    return Qwen3VLConfig(text_config={**TEXT, "rope_parameters": _MROPE}, vision_config=eye, **tokens)


def mamba() -> MambaConfig:
    return MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4)


def bloom() -> PretrainedConfig:
    return AutoConfig.for_model("bloom", vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=2)


def rwkv() -> RwkvConfig:
    return RwkvConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)


def qwen3_next() -> Qwen3NextConfig:
    experts: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    linear: dict[str, Any] = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    layers = ["linear_attention", "full_attention"]
    return Qwen3NextConfig(**TEXT, **experts, **linear, shared_expert_intermediate_size=16, layer_types=layers)


Config = Callable[[], PretrainedConfig]
MakeTeacher = Callable[..., AbstractAsyncContextManager[TransformersBackend]]


@pytest.fixture
def make_folder(tmp_path: Path, random_teacher: Path) -> Callable[[Config], Path]:
    def make(config: Config) -> Path:
        torch.manual_seed(0)
        made = config()
        kind: Any = AutoModelForImageTextToText if hasattr(made, "vision_config") else AutoModelForCausalLM
        model = kind.from_config(made, dtype=torch.float32)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.normal_(std=0.3)
        folder = tmp_path / made.model_type
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (folder / name).write_bytes((random_teacher / name).read_bytes())
        return folder

    return make


@pytest.fixture
def make_teacher(make_settings: Callable[..., Any]) -> MakeTeacher:
    @asynccontextmanager
    async def make(folder: Path, **changes: Any) -> AsyncIterator[TransformersBackend]:
        settings = make_settings(teacher_backend="transformers", teacher_model=str(folder), **changes)
        teacher = TransformersBackend(settings, str(folder), "TEACHER_MODEL", hub=True)
        try:
            await teacher.load()
            yield teacher
        finally:
            await teacher.close()

    return make


def reference(folder: Path, token_ids: Any, *, multimodal: bool) -> Any:
    """Float32 [L−1, v] of the whole model, its eyes included, for tokens 1 … L−1; experts know no float64."""
    kind: Any = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(token_ids.astype(np.int64))[None]).logits[0, :-1]
    return logits.log_softmax(-1).numpy()


async def assert_scores_and_continues(teacher: TransformersBackend, folder: Path, *, multimodal: bool) -> None:
    sequences = [np.random.default_rng(n).integers(4, 280, n).astype(np.uint32) for n in (30, 5, 17)]
    for token_ids, rows in zip(sequences, await teacher.score(sequences, 8), strict=True):
        expected = reference(folder, token_ids, multimodal=multimodal)
        np.testing.assert_allclose(rows.logprobs, -np.sort(-expected, axis=1)[:, :8], atol=2e-4)
        own = np.take_along_axis(expected, token_ids[1:, None].astype(np.int64), axis=1)[:, 0]
        np.testing.assert_allclose(rows.realised_logprobs, own, atol=2e-4)
    # What is remembered of three continuations that end at different lengths must be each one's own.
    request = ContinuationRequest(sequences[1], 12, 30.0, 1.0, 5, 3, 6, (), end_ids=frozenset(range(0, VOCAB, 7)))
    ids: dict[int, list[int]] = {}
    rows_of: dict[int, list[Any]] = {}
    async for piece in teacher.generate(request):
        ids.setdefault(piece.index, []).extend(piece.token_ids)
        rows_of.setdefault(piece.index, []).append(piece.rows)
    assert len({len(i) for i in ids.values()}) > 1, "the test says nothing if all end together"
    for index, continued in ids.items():
        whole = np.concatenate([request.prompt_ids, np.array(continued, np.uint32)])
        (scored,) = await teacher.score([whole], 6)
        rows = join_rows(rows_of[index])
        np.testing.assert_allclose(rows.logprobs, scored.logprobs[len(request.prompt_ids) - 1 :], atol=2e-4)


@pytest.mark.parametrize("config", [gemma3, llava, qwen3_vl])
async def test_the_text_of_a_multimodal_model_is_scored_and_continued(
    make_folder: Callable[[Config], Path], make_teacher: MakeTeacher, config: Config
) -> None:
    folder = make_folder(config)
    async with make_teacher(folder) as teacher:
        about = teacher.description
        assert (about.max_sequence_length, about.vocab_size, about.can_generate) == (64, VOCAB, True)
        await assert_scores_and_continues(teacher, folder, multimodal=True)


@pytest.mark.parametrize("config", [mamba, bloom, qwen3_next])
async def test_recurrent_states_and_positions_without_an_end_are_scored_and_continued(
    make_folder: Callable[[Config], Path], make_teacher: MakeTeacher, config: Config
) -> None:
    folder = make_folder(config)
    async with make_teacher(folder, max_sequence_length=48) as teacher:
        assert teacher.description.max_sequence_length == 48
        await assert_scores_and_continues(teacher, folder, multimodal=False)


@pytest.mark.parametrize("config", [mamba, bloom])
async def test_a_model_that_does_not_say_how_long_a_sequence_may_be_asks_for_the_setting(
    make_folder: Callable[[Config], Path], make_teacher: MakeTeacher, config: Config
) -> None:
    folder = make_folder(config)
    message = f"the configuration of {folder.name} has no max_position_embeddings.*; set MAX_SEQUENCE_LENGTH"
    with pytest.raises(BackendError, match=message):
        async with make_teacher(folder):
            pass


async def test_a_text_length_beyond_a_multimodal_models_is_refused(
    make_folder: Callable[[Config], Path], make_teacher: MakeTeacher
) -> None:
    with pytest.raises(BackendError, match="MAX_SEQUENCE_LENGTH=65 is more than the 64 that gemma3 was made for"):
        async with make_teacher(make_folder(gemma3), max_sequence_length=65):
            pass


async def test_a_model_of_another_kind_is_refused_with_its_family(
    make_folder: Callable[[Config], Path], make_teacher: MakeTeacher
) -> None:
    folder = make_folder(bloom)
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(BackendError, match="the vit family has no model that continues text"):
        async with make_teacher(folder):
            pass


async def test_a_model_that_remembers_nothing_scores_and_says_that_it_cannot_continue(
    make_folder: Callable[[Config], Path], make_settings: Callable[..., Any]
) -> None:
    folder = make_folder(rwkv)
    settings = make_settings(teacher_backend="transformers", teacher_model=str(folder), max_sequence_length=32)
    gateway = Gateway(settings)
    await gateway.start()
    try:
        await gateway.load()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
            stub = TeacherServiceStub(channel)
            about = await stub.GetTeacher(pb.GetTeacherRequest())
            assert (about.can_score, about.can_generate) == (True, False)
            fingerprint = about.tokenizer_fingerprint
            request = pb.GenerateRequest(tokenizer_fingerprint=fingerprint, text="ab", max_tokens=2)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                [answer async for answer in stub.Generate(request)]
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "cannot continue a prompt with rwkv" in str(caught.value.details())
            ids = pb.ScoreRequest(tokenizer_fingerprint=fingerprint, token_ids=[70, 71, 72], top_k=3)
            assert (await stub.Score(ids)).rows.num_rows == 2
    finally:
        await gateway.stop()
