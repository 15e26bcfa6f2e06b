"""A split decoder against its last layers run alone, on what each token sees, one token at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from latentforge.model.backbone import run_backbone
from latentforge.model.chunk_decoder.split import SplitDecoder
from latentforge.model.config import ChunkDecoderConfig, LogitFeaturesConfig, StudentConfig
from latentforge.model.latent_model import LatentModel
from tests.slow_split import split_logits

MakeModel = Callable[..., LatentModel]
V, K, T, RANK = 64, 4, 5, 8
BARE = LogitFeaturesConfig(kind="none")
KINDS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers": {"num_layers": 3, "chunk_decoder.num_layers": 2, "chunk_decoder.num_blocks": 2},
    "llama": {"qk_norm": False, "rope_theta": 100.0, "norm_eps": 1e-3},
    "key heads": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8},
}


def split(**changes: Any) -> dict[str, Any]:
    """What makes a student's decoder a split one."""
    of_decoder = {name.removeprefix("chunk_decoder."): value for name, value in changes.items() if "." in name}
    decoder = ChunkDecoderConfig(**{"kind": "split", "width": 16, "rank": RANK, "num_layers": 1, **of_decoder})
    others = {name: value for name, value in changes.items() if "." not in name}
    return {"positions": "tokens", "logit_features": BARE, "chunk_decoder": decoder, **others}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> LatentModel:
    made = make_model(**split(**KINDS[request.param]))
    decoder, backbone = made.student.chunk_decoder, made.student.backbone
    assert isinstance(decoder, SplitDecoder)
    assert backbone is not None
    with torch.no_grad():
        decoder.scale.copy_(torch.rand_like(decoder.scale) + 0.5)
        for norm in [parameter for part in (backbone, decoder.norm) for parameter in part.parameters()]:
            if norm.ndim == 1:
                norm.copy_(torch.rand_like(norm) + 0.5)
    return made


@torch.no_grad()
def test_each_token_is_written_by_the_last_layers_on_what_it_sees(model: LatentModel, rng: torch.Generator) -> None:
    tokens = torch.randint(2, V, (2, T, K), generator=rng)
    found = model.logits(tokens)
    for text, logits in zip(tokens, found.logits, strict=True):
        torch.testing.assert_close(logits.flatten(0, 1), split_logits(model, text.flatten()), rtol=1e-4, atol=2e-5)
    # What a chunk begins with is the backbone's own state.
    student = model.student
    inputs = torch.cat([student.start_inputs(2), student.input_map(student.embed(tokens.flatten(1)))], 1)
    assert student.backbone is not None
    whole = run_backbone(student.backbone, inputs)
    torch.testing.assert_close(found.hidden, whole[:, :-1:K], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "chunks"}, r"positions='chunks'.*set positions to 'tokens'"),
        ({"logit_features": LogitFeaturesConfig()}, r"logit_features\.kind='autoencoder'.*set logit_features\.kind to"),
        ({"num_layers": 1}, r"chunk_decoder\.num_layers=1 of num_layers=1.*fewer"),
        ({"chunk_size": 1}, r"chunk_size=1.*set more"),
    ],
)
def test_what_cannot_be_split_is_said(
    student_config: Callable[..., StudentConfig], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        student_config(**split(**changes))
