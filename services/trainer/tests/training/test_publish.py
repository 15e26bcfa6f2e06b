from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from latentforge.core.checkpoint_files import read_manifest, verify_checkpoint
from latentforge.core.manifest import TeacherId
from latentforge.model.io import load_autoencoder
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.sections import StudentRecipe
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.training.learners import latent_learner, token_level_learner
from latentforge.trainer.training.publish import golden_text, is_published, publish, publish_steps, published

TEACHER = TeacherId(backend="none", model="none", revision="none")
TEXT = "def"


def recipe(steps: int, **fields: int) -> StudentRecipe:
    return StudentRecipe.model_validate({"model": {}, "optim": {"steps": steps, "batch_size": 1, "lr": 0.1}, **fields})


@pytest.mark.parametrize(("num", "expected"), [(3, [10, 50, 100]), (5, [5, 25, 50, 75, 100])])
def test_the_first_checkpoint_is_early_and_the_last_is_the_end(num: int, expected: list[int]) -> None:
    assert publish_steps(recipe(100, num_publishes=num)) == expected


def test_every_so_many_steps_when_asked_for() -> None:
    assert publish_steps(recipe(100, publish_every=40)) == [40, 80, 100]


def test_a_very_short_run_publishes_what_it_can() -> None:
    assert publish_steps(recipe(1)) == [1]


@pytest.mark.parametrize(
    ("broken", "metrics", "why"),
    [
        ("nothing", {"held_out_ce": 3.0, "held_out_kd": float("inf")}, "held_out_kd is inf"),
        ("weight", {"held_out_ce": 3.0}, r"the weights student\.\S+ are not finite"),
        ("logits", {"held_out_ce": 3.0}, "the logits of a text of 3 tokens are not finite"),
    ],
)
def test_what_is_not_finite_is_not_published(
    make_run: Any, autoencoder: Path, broken: str, metrics: dict[str, float], why: str
) -> None:
    run = make_run()
    model: Any = latent_learner(run, load_autoencoder(autoencoder), torch.ones(260, dtype=torch.int64)).model
    with torch.no_grad():
        if broken == "weight":
            next(model.student.parameters()).view(-1)[0] = float("nan")
        elif broken == "logits":
            for weight in model.student.parameters():
                weight.mul_(1e30)
    with pytest.raises(TrainerError, match=f"step 7: the student is not published, because {why}.* start anew with"):
        publish(run, model, TEACHER, 7, metrics, TEXT)
    assert published(run, model) == []
    assert not is_published(run, model, 7)


def test_a_model_card_is_published_with_the_weights_and_the_manifest_counts_it(
    make_run: Any, autoencoder: Path
) -> None:
    run = make_run(overrides={"license": "apache-2.0"})
    model = latent_learner(run, load_autoencoder(autoencoder), torch.ones(260, dtype=torch.int64)).model
    publish(run, model, TEACHER, 7, {"held_out_ce": 3.0}, TEXT)
    place = run.settings.checkpoints_dir / "tiny" / "step-00000007"
    assert "README.md" in verify_checkpoint(place).files
    card = ModelCard((place / "README.md").read_text(encoding="utf-8"))
    assert "\nlicense: apache-2.0\n" in card.content
    assert "\nlibrary_name: latentforge\n" in card.content
    assert "# tiny/step-00000007" in card.text
    assert "| `held_out_ce` | 3 |" in card.text


def test_what_is_published_is_found(make_run: Any, autoencoder: Path) -> None:
    run = make_run()
    model = latent_learner(run, load_autoencoder(autoencoder), torch.ones(260, dtype=torch.int64)).model
    assert publish(run, model, TEACHER, 7, {"held_out_ce": 3.0}, TEXT) == "tiny/step-00000007"
    # <|endoftext|> and the template's <|im_end|>.
    assert read_manifest(run.settings.checkpoints_dir / "tiny" / "step-00000007").end_ids == (0, 3)
    assert published(run, model) == ["tiny/step-00000007"]
    assert is_published(run, model, 7)
    assert not is_published(run, model, 8)


def test_a_golden_text_is_the_first_one_that_is_held_out_and_fits(tokenizer_folder: Path) -> None:
    tokenizer = TextTokenizer(tokenizer_folder)
    special = tokenizer.special_id("<|endoftext|>")
    assert special is not None
    ids = tokenizer.encode("def main():\n    return naïve 東京")
    whole = golden_text(tokenizer, [[special] * 4, [special, *ids], ids], 1000)
    assert whole == tokenizer.decode(ids)
    for most in range(1, len(ids) + 1):
        try:
            text = golden_text(tokenizer, [ids], most)
        except TrainerError:
            # Not even one character is whole.
            assert most < 4
            continue
        assert whole.startswith(text)
        assert 0 < len(tokenizer.encode(text)) <= most
    with pytest.raises(TrainerError, match="no text, only control tokens"):
        golden_text(tokenizer, [[special] * 4], 10)


def test_a_token_level_student_that_is_not_finite_is_not_published(make_run: Any) -> None:
    run = make_run()
    model: Any = token_level_learner(run, torch.ones(260, dtype=torch.int64)).model
    with torch.no_grad():
        model.start[0] = float("nan")
    with pytest.raises(TrainerError, match="the weights start are not finite"):
        publish(run, model, TEACHER, 7, {}, TEXT)
    assert published(run, model) == []
