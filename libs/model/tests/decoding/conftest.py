from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latentforge.model.chunk_decoder.carried import CarriedDecoder
from latentforge.model.config import ChunkDecoderConfig, InductionConfig, LogitFeaturesConfig, StudentConfig
from latentforge.model.heads import EnergyHead
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams, TextSampling
from latentforge.model.token_level import TokenLevelModel, token_level_config

AnyModel = LatentModel | TokenLevelModel
PAD = 1
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}

SPLIT = ChunkDecoderConfig(kind="split", width=16, rank=8, num_layers=1)
RECURRENT = ChunkDecoderConfig(kind="recurrent", width=16, rank=8, num_layers=2, num_blocks=2)

MODELS: dict[str, dict[str, Any]] = {
    **{
        f"{kind}-window{window}": {
            "chunk_decoder": ChunkDecoderConfig(kind=kind, width=16, rank=8, window=window, num_layers=1 + window)
        }
        for kind in ("gru", "transformer")
        for window in (0, 1, 2)
    },
    "no-decoder": {"chunk_decoder": ChunkDecoderConfig(kind="none")},
    "frequent-ids": {"chunk_decoder": ChunkDecoderConfig(width=16, rank=8, frequent_ids=9)},
    "linear-features": {"logit_features": LogitFeaturesConfig(kind="linear", width=12)},
    "features-of-embeddings": {"logit_features": LogitFeaturesConfig(kind="embeddings", width=16)},
    "llama": {"qk_norm": False, "norm_eps": 1e-3, "rope_theta": 100.0},
    "llama3-rope": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, **_LLAMA3}, "rope_theta": 100.0},
    "yarn-rope": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4}},
    "key-heads": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8},
    "induction": {"induction": InductionConfig(context=2, size=12, num_heads=3)},
    "induction-transformer": {
        "induction": InductionConfig(context=5),
        "chunk_decoder": ChunkDecoderConfig(kind="transformer", width=16, rank=8),
    },
    "induction-energy": {"head": "energy", "induction": InductionConfig(context=3)},
    "K1": {"chunk_size": 1, "max_chunks": 40, "induction": InductionConfig(context=3)},
    "recurrent": {"chunk_decoder": RECURRENT},
    "recurrent-bare": {
        "chunk_decoder": RECURRENT.model_copy(update={"frequent_ids": 9}),
        "logit_features": LogitFeaturesConfig(kind="none"),
        "induction": InductionConfig(context=3),
    },
    "recurrent-no-layers": {"chunk_decoder": RECURRENT, "num_layers": 0},
    "recurrent-K1": {"chunk_size": 1, "max_chunks": 40, "chunk_decoder": RECURRENT},
    "token-positions": {"positions": "tokens", "induction": InductionConfig(context=3), "embed_size": 8},
    "token-positions-recurrent": {
        "positions": "tokens",
        "chunk_decoder": RECURRENT,
        "logit_features": LogitFeaturesConfig(kind="linear", width=12),
    },
    "split": {"positions": "tokens", "chunk_decoder": SPLIT, "logit_features": LogitFeaturesConfig(kind="none")},
    "split-induction": {
        "positions": "tokens",
        "num_layers": 3,
        "chunk_decoder": SPLIT.model_copy(update={"num_layers": 2, "num_blocks": 0}),
        "logit_features": LogitFeaturesConfig(kind="none"),
        "induction": InductionConfig(context=3),
    },
    "gru-no-layers": {"num_layers": 0, "induction": InductionConfig(context=2)},
    "token-level": {"max_chunks": 10},
    "token-level-llama": {"max_chunks": 10, "qk_norm": False},
    "token-level-induction": {"max_chunks": 10, "induction": InductionConfig(context=3)},
    "token-level-narrow": {"max_chunks": 10},
    "token-level-narrow-induction": {"max_chunks": 10, "induction": InductionConfig(context=3)},
    "token-level-rank": {"max_chunks": 10, "induction": InductionConfig(context=3)},
}
# Of TokenLevelConfig.
TABLES = {
    "token-level-narrow": {"embed_size": 8, "output_rank": 12},
    "token-level-narrow-induction": {"embed_size": 8, "output_rank": 12},
    "token-level-rank": {"output_rank": 12},
}


@pytest.fixture
def make_any(make_model: Callable[..., LatentModel], student_config: Callable[..., StudentConfig]) -> Any:
    """Makes one of MODELS, with random weights that leave no path unused."""

    def make(name: str) -> AnyModel:
        if not name.startswith("token-level"):
            model: AnyModel = make_model(**MODELS[name])
        else:
            torch.manual_seed(5)
            config = token_level_config(student_config(**MODELS[name])).model_copy(update=TABLES.get(name, {}))
            model = TokenLevelModel(config).eval()
            model.output_table.weight.data.normal_(std=0.1)
            model.bias.data.normal_()
        student: Any = model if isinstance(model, TokenLevelModel) else model.student
        with torch.no_grad():
            # Norms of ones and bases of one number would hide where they belong.
            carried = isinstance(model, LatentModel) and isinstance(model.student.chunk_decoder, CarriedDecoder)
            for part in (student.backbone, student.chunk_decoder if carried else None):
                for parameter in part.parameters() if part is not None else ():
                    if parameter.ndim == 1:
                        parameter.copy_(torch.rand_like(parameter) + 0.5)
            if student.induction is not None:
                heads = torch.arange(student.induction.heads)
                student.induction.out.weight.normal_(std=0.05)
                student.induction.nothing.copy_(heads + 1.3)
                student.induction.log_sharpness.copy_(heads / 3 + 0.9)
                student.induction.gain.copy_(heads / 5 + 0.1)
        return model

    return make


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, make_any: Callable[[str], AnyModel]) -> AnyModel:
    return make_any(request.param)


@pytest.fixture(params=[name for name, changes in MODELS.items() if changes.get("head") != "energy"])
def sure_model(request: pytest.FixtureRequest, make_any: Callable[[str], AnyModel]) -> AnyModel:
    """Each of those whose latents are not drawn."""
    return make_any(request.param)


@pytest.fixture(params=[name for name, changes in MODELS.items() if "induction" in changes])
def copying_model(request: pytest.FixtureRequest, make_any: Callable[[str], AnyModel]) -> AnyModel:
    """Each of those with induction heads."""
    return make_any(request.param)


@pytest.fixture
def distributions() -> Callable[..., Tensor]:
    """The slow reference: log probabilities [L, V] of every token of a text, the whole of it by ``model.logits``."""

    @torch.no_grad()
    def of(model: AnyModel, ids: list[int], *, first_drawn: int = 0, seed: int = 0) -> Tensor:
        """``ids`` are of whole chunks; an energy head's noise is of ``seed``, from token ``first_drawn`` on."""
        if isinstance(model, TokenLevelModel):
            logits = model.logits(torch.tensor([ids]))[0]
        else:
            tokens = torch.tensor([ids]).unflatten(1, (-1, model.chunk_size))
            head = model.student.head
            if isinstance(head, EnergyHead):
                hidden, noise = model.hidden(tokens), TextSampling(SamplingParams(seed=seed), [], 1).noise
                chunks = hidden.shape[1] - first_drawn // model.chunk_size
                draws = torch.cat(
                    [torch.zeros(hidden.shape[1] - chunks, head.noise_size)]
                    + [torch.rand(1, head.noise_size, generator=noise) for _ in range(chunks)]
                )
                logits = model.output(tokens, hidden, head.from_noise(hidden, draws[None])).logits()
            else:
                logits = model.logits(tokens).logits.flatten(0, 2)
        return logits.index_fill(-1, torch.tensor(PAD), -torch.inf).log_softmax(-1)

    return of
