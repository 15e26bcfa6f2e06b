from collections.abc import Callable

import pytest
from huggingface_hub import ModelCard

from latentforge.core.manifest import Golden, ManifestDraft, TeacherId
from latentforge.model.latent_model import LatentModel
from latentforge.model.model_card import NO_LICENSE, model_card

DRAFT = ManifestDraft(
    chunk_size=4,
    latent_size=16,
    tokenizer_fingerprint="abcdef0123456789",
    teacher=TeacherId(backend="transformers", model="some/teacher", revision="r1"),
    metrics={"held_out_ce": 3.14159, "held_out_kd": 0.5},
    golden=Golden(text="a", token_ids=(1,), logprobs=(-1.0,), uniforms=(0.5,), drawn_ids=(2,)),
)


def test_a_card_says_what_a_checkpoint_is(make_model: Callable[..., LatentModel]) -> None:
    model = make_model()
    text = model_card(model, DRAFT, "demo/step-00000007", "apache-2.0")
    # As the hub reads it: the front matter, then the text.
    card = ModelCard(text)
    front: dict[str, object] = card.data.to_dict()  # type: ignore[no-untyped-call]
    assert front == {
        "license": "apache-2.0",
        "library_name": "latentforge",
        "pipeline_tag": "text-generation",
        "tags": ["chunk-level", "knowledge-distillation", "latentforge"],
    }
    assert card.text.lstrip().startswith("# demo/step-00000007\n")
    student = sum(p.numel() for p in model.student.parameters())
    for line in (
        "| teacher | some/teacher (transformers, r1) |",
        "| K, tokens of a step | 4 |",
        "| D, dimensions of a latent | 16 |",
        "| vocabulary | 64 ids, tokenizer abcdef012345 |",
        "| context | 64 tokens |",
        f"| student | 2 layers of width 32; {student:,} parameters |",
        "| license of the weights | apache-2.0 |",
        "| `held_out_ce` | 3.142 |",
        "| `held_out_kd` | 0.5 |",
        "student = LatentStudent.from_pretrained",
    ):
        assert line in card.text
    assert "checkpoints/demo/step-00000007/" in card.text


def test_a_card_says_what_the_worth_of_a_part_means(make_model: Callable[..., LatentModel]) -> None:
    explained = "`held_out_worth_…` is how many nats per token that text costs more without the part"
    metrics = {"held_out_ce": 3.14159, "held_out_worth_backbone": 0.0532}
    texts = [
        model_card(make_model(), DRAFT.model_copy(update=update), "demo/step-00000007", NO_LICENSE)
        for update in ({}, {"metrics": metrics})
    ]
    assert [explained in text for text in texts] == [False, True]
    assert "chunk decoder.\n\n| metric | value |\n" in texts[1]
    assert "| `held_out_worth_backbone` | 0.0532 |" in texts[1]
    assert "likeliest tokens alone.\n\n| metric | value |\n" in texts[0]


@pytest.mark.parametrize("metrics", [{}, {"held_out_ce": 1.0}])
def test_a_card_of_nothing_measured_has_no_table_and_no_licence_is_said(
    make_model: Callable[..., LatentModel], metrics: dict[str, float]
) -> None:
    draft = DRAFT.model_copy(update={"metrics": metrics})
    text = model_card(make_model(), draft, "demo/step-00000007", NO_LICENSE)
    assert ("| metric | value |" in text) == bool(metrics)
    assert ("Nothing.\n" in text) != bool(metrics)
    assert "| license of the weights | none chosen yet |" in text
    assert "moving average" not in text
    averaged = model_card(make_model(), draft.model_copy(update={"ema": 0.999}), "demo/step-00000007", NO_LICENSE)
    assert "parameters |\n| student's weights | moving average over the training's steps, decay 0.999 |\n" in averaged
