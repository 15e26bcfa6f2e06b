from typing import Any

import pytest
import torch

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.losses import StudentBatch
from latentforge.trainer.data.sequence_order import step_generator
from latentforge.trainer.evaluate.reconstruction import evaluate_reconstruction


def test_it_equals_a_reference_over_all_chunks_at_once(make_latent: Any, batches: list[StudentBatch]) -> None:
    model = make_latent()
    found = evaluate_reconstruction(model, batches)
    chunks = torch.cat([b.tokens for b in batches]).view(3, 8, 4)
    with torch.no_grad():
        posterior = model.autoencoder.encode(chunks)
        logits = model.autoencoder.decode(posterior.mean)
        latents = model.logits(chunks).latents
        top = logits.topk(2, -1).values
        student = (model.autoencoder.decode(latents).argmax(-1) == chunks).float().mean().item()
    assert found.chunks == 24
    assert found.clean == pytest.approx((logits.argmax(-1) == chunks).float().mean().item())
    assert 0 < found.noisy <= 1
    assert found.margin == pytest.approx((top[..., 0] - top[..., 1]).mean().item(), rel=1e-4)
    assert found.student == pytest.approx(student)
    assert found.mse == pytest.approx((latents - posterior.mean).square().mean().item(), rel=1e-4)
    kl = posterior.kl().flatten(0, 1).mean(0)
    assert found.active_dims == int((kl > model.autoencoder.config.kl_floor).sum())


def test_noise_costs_tokens_and_chunks_with_pads_are_left_out(make_latent: Any, batches: list[StudentBatch]) -> None:
    model = make_latent()
    with torch.no_grad():
        model.autoencoder.to_log_std.bias.fill_(2.0)
    batches[0].tokens[0, 5] = 1
    found = evaluate_reconstruction(model, batches)
    assert found.noisy < found.clean
    assert found.chunks == 23


@pytest.mark.parametrize("kind", ["linear", "none"])
def test_features_without_a_latent_have_no_students_error(
    make_latent: Any, batches: list[StudentBatch], kind: str
) -> None:
    found = evaluate_reconstruction(make_latent(logit_features={"kind": kind, "width": 8}), batches)
    assert found.student is None
    assert found.mse is None
    assert found.clean > 0


def test_beside_it_stands_one_that_has_learnt_nothing(make_latent: Any, batches: list[StudentBatch]) -> None:
    model = make_latent(latent_size=16)
    state = torch.random.get_rng_state()
    found = evaluate_reconstruction(model, batches, seed=5)
    assert torch.random.get_rng_state().equal(state)
    torch.manual_seed(5)
    untrained = Autoencoder(model.autoencoder.config).eval()
    right = torch.zeros(2)
    with torch.no_grad():
        for index, batch in enumerate(batches):
            chunks = batch.tokens.view(-1, 4)
            generator = step_generator(5, index, torch.device("cpu"))
            # The trained one's noise is drawn first.
            model.autoencoder.encode(chunks).sample(generator)
            posterior = untrained.encode(chunks)
            for i, latents in enumerate((posterior.mean, posterior.sample(generator))):
                right[i] += (untrained.decode(latents).argmax(-1) == chunks).sum()
    assert [found.untrained_clean, found.untrained_noisy] == pytest.approx((right / 96).tolist())
    assert right[0] != right[1] > 10
