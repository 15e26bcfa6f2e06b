"""Layers through torch.compile against the same layers without it, over whole runs."""

import importlib.util
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latentforge.model.losses import ObjectiveWeights, StudentBatch, loss_of
from latentforge.model.token_level import TokenLevelModel
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.training.compiling import compile_layers
from latentforge.trainer.training.student import train_token_level

WEIGHTS = "token-level/model.safetensors"


def make_model(run: Any) -> TokenLevelModel:
    torch.manual_seed(0)
    return TokenLevelModel(run.recipe.token_level_config(run.tokenizer.vocab_size, 1, 0)).train()


# All that needs the compiler in one test: compiling takes most of a minute, and is done once for all that is alike.
# Torch warns of its own parts while it compiles.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_layers_learn_the_same_and_resume_to_the_bit(
    known_teacher: Any, make_run: Any, packed: PackedData
) -> None:
    data = split_tail(packed)
    # Only before and after all steps: a validation's batches are of another size.
    seldom = {"student.validate_every": 100}
    compiled = seldom | {"student.compile": True}
    plain = make_run("plain", port=known_teacher.port, overrides=seldom)
    whole = make_run("whole", port=known_teacher.port, overrides=compiled)
    curves = [train_token_level(run, *data).curve for run in (plain, whole)]
    assert [point.ce for point in curves[1]] == pytest.approx([point.ce for point in curves[0]], rel=1e-4)
    cut = make_run("cut", port=known_teacher.port, overrides=compiled, stop_at=("token-level", 5))
    with pytest.raises(Interrupted):
        train_token_level(cut, *data)
    train_token_level(make_run("cut", port=known_teacher.port, overrides=compiled), *data)
    with pytest.raises(TrainerError, match=r"begun with student\.compile = True, now it is False"):
        train_token_level(make_run("whole", port=known_teacher.port, overrides=seldom), *data)
    tensors = [load_file(run.folder / WEIGHTS) for run in (whole, cut, plain)]
    assert list(tensors[0]) == list(tensors[1]) == list(tensors[2])
    assert all(np.array_equal(value, tensors[1][name]) for name, value in tensors[0].items())

    models = [make_model(whole), make_model(whole)]
    compile_layers(models[1], torch.device("cpu"), varying=False)
    assert list(models[1].state_dict()) == list(models[0].state_dict())
    tokens = torch.from_numpy(packed.sequence(0)[None].astype(np.int64)).expand(2, -1)
    batch = StudentBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    totals = [loss_of(model, batch, ObjectiveWeights(kd=0, mse=0)).total for model in models]
    torch.testing.assert_close(totals[1], totals[0], rtol=1e-6, atol=0)
    for total in totals:
        total.backward()
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-7, msg=name)
    # Not bit for bit: it is other code that made them.
    assert any(not a.grad.equal(b.grad) for a, b in zip(*(m.parameters() for m in models), strict=True))


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="triton is installed")
def test_without_triton_it_says_what_cuda_needs(make_run: Any) -> None:
    with pytest.raises(TrainerError, match=r"student\.compile=true needs the package triton on CUDA"):
        compile_layers(make_model(make_run()), torch.device("cuda"), varying=False)


def test_without_a_compiler_it_says_what_is_missing(
    known_teacher: Any, make_run: Any, packed: PackedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    run = make_run(port=known_teacher.port, overrides={"student.compile": True})
    with pytest.raises(TrainerError, match=r"student\.compile=true needs a C\+\+ compiler, and there is no no-such-c"):
        train_token_level(run, *split_tail(packed))
