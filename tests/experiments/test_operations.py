"""Operations of training, beside what products of known sizes take."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.fresh import fresh_model
from experiments.operations import autoencoder_flops, student_flops
from experiments.pareto import pareto_models
from experiments.scales import SCALES, ScaleName
from experiments.speed import num_parameters
from experiments.worth_plan import WORTH_SCALES, architectures, run_of
from latentforge.model.autoencoder import Autoencoder
from latentforge.model.config import AutoencoderConfig, TokenLevelConfig
from latentforge.model.latent_model import LatentModel
from latentforge.model.token_level import TokenLevelModel

WIDTH, FEW, MANY = 32, 1000, 3000


def token_level(vocab_size: int) -> TokenLevelModel:
    sizes = {
        "num_layers": 1,
        "num_heads": 1,
        "num_kv_heads": 1,
        "head_dim": 64,
        "intermediate_size": 64,
        "max_tokens": 64,
    }
    return TokenLevelModel(TokenLevelConfig(vocab_size=vocab_size, hidden_size=WIDTH, pad_id=1, eos_id=0, **sizes))


def autoencoder(vocab_size: int, hidden_size: int = WIDTH) -> Autoencoder:
    config = AutoencoderConfig(vocab_size=vocab_size, chunk_size=4, latent_size=16, hidden_size=hidden_size, pad_id=1)
    return Autoencoder(config)


def test_an_output_layer_takes_three_products() -> None:
    """Logits, and the gradients of what the layer reads and of its table: 2 operations per entry of the table each."""
    more = 6 * WIDTH * (MANY - FEW)
    assert autoencoder_flops(autoencoder(MANY), 64) - autoencoder_flops(autoencoder(FEW), 64) == more
    assert student_flops(token_level(MANY), 64) - student_flops(token_level(FEW), 64) == more


def test_operations_are_those_of_plain_autograd() -> None:
    """Of which the counter knows every product: the loss over logits of the whole batch."""
    model = token_level(FEW)
    ids = torch.randint(2, FEW, (1, 64))
    with FlopCounterMode(display=False) as counter:
        model.logits(ids).logsumexp(-1).sum().backward()
    assert student_flops(model, 64) == pytest.approx(counter.get_total_flops() / 64)


def test_a_student_is_as_it_was_after_its_autoencoder_was_counted() -> None:
    scale = SCALES[ScaleName.smoke]
    model = fresh_model(scale, next(m for m in pareto_models(scale) if m.vocabulary == "large" and m.k == 8))
    assert isinstance(model, LatentModel)
    before = student_flops(model, 64)
    assert autoencoder_flops(model.autoencoder, 64) > 6 * WIDTH * model.vocab_size
    assert not any(p.requires_grad for p in model.autoencoder.parameters())
    assert not model.autoencoder.training
    assert student_flops(model, 64) == before


def test_parameters_are_those_that_logits_depend_on() -> None:
    large = (m for m in pareto_models(SCALES[ScaleName.smoke]) if m.vocabulary == "large" and m.k == 8)
    scale, worth = SCALES[ScaleName.smoke], WORTH_SCALES[ScaleName.smoke]
    models = [*(run_of(worth, a, 1, 1.0) for a in architectures(worth)), next(large)]
    for model in (fresh_model(scale, model) for model in models):
        model.requires_grad_(True)
        tokens = torch.arange(2, 34)[None]
        if isinstance(model, LatentModel):
            chunks = tokens.unflatten(1, (-1, model.chunk_size))
            logits = model.logits(chunks).logits
        else:
            logits = model.output(tokens).logits()
        logits.square().sum().backward()
        # In place of hidden states without layers stands a constant, which a recurrent decoder does not read.
        read = [p for name, p in model.named_parameters() if p.grad is not None or name == "student.constant"]
        assert num_parameters(model) == sum(p.numel() for p in read)
