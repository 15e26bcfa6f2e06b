from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentforge.model.config import InductionConfig, StudentConfig
from latentforge.model.io import load_student, load_token_level, save_pretrained
from latentforge.model.losses import ObjectiveWeights, StudentBatch, token_level_loss
from latentforge.model.token_level import TokenLevelModel, token_level_config

V = 64


@pytest.fixture(params=[(0, {}), (3, {}), (3, {"embed_size": 8, "output_rank": 12})])
def model(request: pytest.FixtureRequest, student_config: Callable[..., StudentConfig]) -> TokenLevelModel:
    torch.manual_seed(5)
    context, tables = request.param
    config = token_level_config(student_config(induction=InductionConfig(context=context)))
    model = TokenLevelModel(config.model_copy(update=tables)).eval()
    model.output_table.weight.data.normal_(std=0.1)
    return model


def test_a_token_changes_no_row_up_to_itself(model: TokenLevelModel, rng: torch.Generator) -> None:
    tokens = torch.randint(2, V, (1, 12), generator=rng)
    with torch.no_grad():
        logits = model.logits(tokens)[0]
        for i in range(12):
            changed = tokens.clone()
            changed[0, i] = 2 + (changed[0, i] - 1) % (V - 2)
            logits2 = model.logits(changed)[0]
            torch.testing.assert_close(logits2[: i + 1], logits[: i + 1], rtol=0, atol=1e-5)
            if i + 1 < 12:
                assert (logits2[i + 1] - logits[i + 1]).abs().max() > 1e-4


def test_its_cross_entropy_is_that_of_its_logits(model: TokenLevelModel, rng: torch.Generator) -> None:
    tokens = torch.randint(2, V, (2, 12), generator=rng)
    valid = torch.rand(2, 12, generator=rng) < 0.7
    loss = token_level_loss(model, StudentBatch(tokens, valid), ObjectiveWeights(ce=1, kd=0, mse=0))
    wanted = torch.nn.functional.cross_entropy(model.logits(tokens)[valid], tokens[valid])
    torch.testing.assert_close(loss.ce, wanted)
    torch.testing.assert_close(loss.total, wanted)


def test_it_has_no_latent_to_learn(model: TokenLevelModel) -> None:
    batch = StudentBatch(torch.ones(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mse weight 0\.1 and energy weight 0\.0.*set both to 0"):
        token_level_loss(model, batch, ObjectiveWeights(ce=1, kd=0, mse=0.1))


def test_it_starts_at_the_unigram_model(student_config: Callable[..., StudentConfig], rng: torch.Generator) -> None:
    torch.manual_seed(0)
    model = TokenLevelModel(token_level_config(student_config()))
    counts = torch.arange(V) ** 2
    model.set_token_counts(counts)
    with torch.no_grad():
        probabilities = model.logits(torch.randint(2, V, (4, 20), generator=rng)).softmax(-1).mean((0, 1))
    torch.testing.assert_close(probabilities, (counts + 1) / (counts + 1).sum(), rtol=0.2, atol=1e-3)


def test_it_comes_back_from_its_folder_and_is_no_latent_student(model: TokenLevelModel, tmp_path: Path) -> None:
    save_pretrained(model, tmp_path)
    again = load_token_level(tmp_path)
    assert again.config == model.config
    tokens = torch.arange(2, 10)[None]
    assert again.logits(tokens).equal(model.logits(tokens))
    with pytest.raises(ValueError, match="kind is 'token-level', but 'student' is wanted here"):
        load_student(tmp_path)


@torch.no_grad()
def test_narrow_tables_are_whole_ones_of_a_lower_rank(
    student_config: Callable[..., StudentConfig], rng: torch.Generator
) -> None:
    torch.manual_seed(5)
    config = token_level_config(student_config())
    narrow = TokenLevelModel(config.model_copy(update={"embed_size": 8, "output_rank": 12})).eval()
    assert narrow.embedding.weight.shape == (V, 8)
    assert narrow.output_table.weight.shape == (V, 12)
    assert narrow.input_map is not None
    assert narrow.output_map is not None
    for parameter in (narrow.output_table.weight, narrow.input_map.bias, narrow.bias):
        parameter.normal_()
    whole = TokenLevelModel(config).eval()
    names = whole.state_dict().keys()
    tables = {"embedding.weight", "output_table.weight"}
    whole.load_state_dict({n: p for n, p in narrow.state_dict().items() if n in names - tables}, strict=False)
    whole.embedding.weight.copy_(narrow.embedding.weight @ narrow.input_map.weight.T + narrow.input_map.bias / 10)
    # Tables read what is 160 / width of the states.
    whole.output_table.weight.copy_(narrow.output_table.weight @ narrow.output_map.weight * (160 / 12) / (160 / 32))
    tokens = torch.randint(2, V, (2, 12), generator=rng)
    torch.testing.assert_close(narrow.logits(tokens), whole.logits(tokens), rtol=1e-4, atol=1e-4)


def test_fresh_narrow_embeddings_enter_the_backbone_as_large_as_whole_ones(
    student_config: Callable[..., StudentConfig],
) -> None:
    torch.manual_seed(0)
    config = token_level_config(student_config(hidden_size=64, vocab_size=512)).model_copy(update={"embed_size": 16})
    model = TokenLevelModel(config).requires_grad_(False)
    assert model.inputs_of(model.embed(torch.arange(512))).std() == pytest.approx(1, abs=0.1)
