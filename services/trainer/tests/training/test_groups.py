from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.latent_model import LatentModel
from latentforge.model.optim import build_optimizers
from latentforge.model.student import Student
from latentforge.model.token_level import TokenLevelModel
from latentforge.trainer.config.sections import OptimRecipe
from latentforge.trainer.training.groups import freeze, group_of_parameter
from latentforge.trainer.training.optimisation import Optimisation, learning_rate


def recipe(groups: dict[str, Any], **changes: Any) -> OptimRecipe:
    values = {"steps": 100, "batch_size": 1, "lr": 0.01, "warmup_steps": 3, "weight_decay": 0.1, "clip_norm": 1e9}
    return OptimRecipe.model_validate({**values, **changes, "groups": groups})


@pytest.fixture
def models(make_run: Any) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    tables = {"student.token_level.embed_size": 8, "student.token_level.output_rank": 8}
    recipe = make_run(overrides={"student.model.logit_features.kind": "linear", **tables}).recipe
    autoencoder = Autoencoder(recipe.autoencoder_config(260, 1))
    student = Student(recipe.student_config(1, 0, autoencoder.config))
    return {
        "student": LatentModel(autoencoder, student),
        "token-level": TokenLevelModel(recipe.token_level_config(260, 1, 0)),
        "autoencoder": Autoencoder(recipe.autoencoder_config(260, 1)),
    }


def named(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def train(model: nn.Module, optimisation: Optimisation, steps: Iterator[int] | range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        loss = sum((p * torch.randn(p.shape, generator=generator)).sum() for p in named(model).values())
        assert isinstance(loss, Tensor)
        optimisation.step(step, [(loss, {})])


def test_every_parameter_is_in_the_group_that_its_name_says(models: dict[str, nn.Module]) -> None:
    groups = {name: {n: group_of_parameter(n) for n in named(model)} for name, model in models.items()}
    student = groups["student"]
    assert {n for n, group in student.items() if group == "layers"} == {n for n in student if ".backbone." in n}
    assert student["student.backbone.norm.weight"] == "layers"
    assert student["student.embedding.weight"] == "inputs"
    assert {student[f"student.{n}"] for n in ("chunk_up.weight", "chunk_down.bias", "start")} == {"chunks"}
    outputs = {n for n, group in student.items() if group == "outputs"}
    features = {f"student.logit_features.{n}" for n in ("output.weight", "map.weight", "map.bias")}
    assert outputs == {"student.chunk_decoder.output.weight"} | features
    assert student["student.chunk_decoder.start.weight"] == "rest"
    assert student["student.bias"] == "rest"
    assert {groups["token-level"][f"output_{n}.weight"] for n in ("table", "map")} == {"outputs"}
    assert {groups["token-level"][n] for n in ("start", "input_map.weight", "input_map.bias")} == {"chunks"}
    assert {n for n, group in groups["autoencoder"].items() if group != "rest"} == {"embedding.weight"}


def test_a_recurrent_writers_parameters_have_groups(make_run: Any) -> None:
    recipe = make_run(overrides={"student.model.chunk_decoder.kind": "recurrent"}).recipe
    autoencoder = Autoencoder(recipe.autoencoder_config(260, 1))
    for layers in (1, 0):
        changed = recipe.student_config(1, 0, autoencoder.config).model_copy(update={"num_layers": layers})
        groups = {name: group_of_parameter(name) for name, _ in Student(changed).named_parameters()}
        assert groups["chunk_decoder.output.weight"] == "outputs"
        assert {groups[f"chunk_decoder.{n}"] for n in ("start", "gru.weight_hh_l0", "norm.weight")} == {"rest"}
        assert ("layers" in groups.values()) == ("chunks" in groups.values()) == (layers > 0)
    assert groups["constant"] == "rest"


@pytest.mark.parametrize("split", [False, True])
def test_groups_that_change_nothing_give_what_none_give(models: dict[str, nn.Module], split: bool) -> None:
    model = models["student"]
    before = {name: p.detach().clone() for name, p in named(model).items()}
    train(model, Optimisation(model, recipe({}, muon_split=split)), range(4))
    plain = {name: p.detach().clone() for name, p in named(model).items()}
    with torch.no_grad():
        for name, p in named(model).items():
            p.copy_(before[name])
    groups = {"layers": {}, "outputs": {"rate": 1.0}}
    train(model, Optimisation(model, recipe(groups, muon_split=split)), range(4))
    for name, p in named(model).items():
        torch.testing.assert_close(p.detach(), plain[name], rtol=1e-6, atol=1e-7, msg=name)


def test_a_frozen_group_stands_still_and_then_begins_slowly(models: dict[str, nn.Module]) -> None:
    model = models["student"]
    optimisation = Optimisation(model, recipe({"layers": {"frozen_steps": 4}}))
    moved: list[dict[str, float]] = []
    for step in range(10):
        before = {name: p.detach().clone() for name, p in named(model).items()}
        train(model, optimisation, range(step, step + 1))
        sizes: dict[str, float] = {}
        for name, p in named(model).items():
            group = group_of_parameter(name)
            sizes[group] = max(sizes.get(group, 0.0), float((p.detach() - before[name]).abs().max()))
        moved.append(sizes)
    assert [sizes["layers"] == 0 for sizes in moved] == [True] * 4 + [False] * 6
    assert all(sizes[group] > 0 for sizes in moved for group in ("inputs", "chunks", "outputs", "rest"))
    # A quarter of the rate at first, as at the beginning of training.
    assert moved[4]["layers"] < 0.5 * moved[8]["layers"]


def test_a_rate_is_a_share_of_the_schedules(models: dict[str, nn.Module]) -> None:
    model = models["token-level"]
    # AdamW moves every entry by about the rate in its first step.
    before = {name: p.detach().clone() for name, p in named(model).items()}
    train(model, Optimisation(model, recipe({"inputs": {"rate": 0.25}})), range(1))
    lr = learning_rate(0, recipe({}))
    moved = {name: float((p.detach() - before[name]).abs().median()) for name, p in named(model).items()}
    assert moved["embedding.weight"] == pytest.approx(0.25 * lr, rel=1e-3)
    assert moved["bias"] == pytest.approx(lr, rel=1e-3)


def test_a_group_of_rate_0_is_frozen_and_the_others_are_not(models: dict[str, nn.Module]) -> None:
    model = models["token-level"]
    frozen = recipe({"outputs": {"rate": 0.0}, "layers": {"rate": 0.0}, "inputs": {"rate": 0.5}})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    freeze(model, frozen)
    train(model, Optimisation(model, frozen), range(3))
    for name, p in model.named_parameters():
        stays = group_of_parameter(name) in ("outputs", "layers")
        assert (p.grad is None and p.detach().equal(before[name])) == stays == (not p.requires_grad), name


def test_the_gradient_of_a_frozen_group_is_not_clipped_against(models: dict[str, nn.Module]) -> None:
    model = models["token-level"]
    groups = {"layers": {"frozen_steps": 5}}
    loss = sum(p.sum() for p in named(model).values())
    assert isinstance(loss, Tensor)
    rest = sum(p.numel() for name, p in named(model).items() if group_of_parameter(name) != "layers")
    norm = Optimisation(model, recipe(groups)).step(0, [(loss, {})])["grad_norm"]
    assert norm == pytest.approx(rest**0.5, rel=1e-5)


def test_matrices_of_a_group_can_go_to_adamw(models: dict[str, nn.Module]) -> None:
    model = models["token-level"]
    weight = "backbone.layers.0.mlp.up_proj.weight"
    before = named(model)[weight].detach().clone()
    optimisation = Optimisation(model, recipe({"layers": {"optimizer": "adamw"}}))
    train(model, optimisation, range(1))
    lr = learning_rate(0, recipe({}))
    # Decay pulls as Muon's does; then every entry moves by the rate.
    moved = (named(model)[weight].detach() - before * (1 - lr * 0.1)).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, lr), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    "groups",
    [{"layers": {"optimizer": "adamw", "rate": 0.1, "frozen_steps": 3}, "outputs": {"rate": 0.1}}, {"rest": {}}],
)
def test_they_resume_bit_for_bit(
    models: dict[str, nn.Module], groups: dict[str, Any], make_run: Callable[..., Any]
) -> None:
    model = models["student"]
    start = {name: p.detach().clone() for name, p in named(model).items()}
    train(model, Optimisation(model, recipe(groups)), range(8))
    wanted = {name: p.detach().clone() for name, p in named(model).items()}
    with torch.no_grad():
        for name, p in named(model).items():
            p.copy_(start[name])
    first = Optimisation(model, recipe(groups))
    train(model, first, range(2))
    second = Optimisation(model, recipe(groups))
    second.load_state({name: value.clone() for name, value in first.state().items()})
    train(model, second, range(2, 8))
    for name, p in named(model).items():
        assert p.detach().equal(wanted[name]), name


def test_every_parameter_is_in_one_optimizer(models: dict[str, nn.Module]) -> None:
    model = models["student"]
    optimisation = Optimisation(model, recipe({"layers": {"optimizer": "adamw"}}))
    held = [id(p) for o in optimisation._optimizers for group in o.param_groups for p in group["params"]]
    whole = [id(p) for o in build_optimizers(model, 1.0) for group in o.param_groups for p in group["params"]]
    assert sorted(held) == sorted(whole)


def test_a_group_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"(?s)groups\.head.*'layers', 'inputs', 'chunks', 'outputs' or 'rest'"):
        recipe({"head": {"rate": 2.0}})
