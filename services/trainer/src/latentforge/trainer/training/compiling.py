"""A student's transformer, and on a GPU its losses' passes over logits, through torch.compile."""

import atexit
import importlib.util
import os
import shutil
import tempfile

import torch

from latentforge.model.latent_model import LatentModel
from latentforge.model.logit_passes import fused_passes
from latentforge.model.token_level import TokenLevelModel
from latentforge.trainer.errors import TrainerError

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def compile_layers(model: LatentModel | TokenLevelModel, device: torch.device, *, varying: bool) -> None:
    """Has the transformer's layers compiled when they are first run; weights and their names stay as they are.

    Layer by layer: they are alike, so all are one layer's compilation, and activation checkpointing finds its layers.

    Args:
        model: its layers are changed in place.
        device: that it is on.
        varying: whether batches differ in size; then one kernel is made for all sizes, else one for each that comes.
            Either way a size's kernel does not depend on what came before, so a resumed run has the same.

    Raises:
        TrainerError: what torch.compile needs on the device is not there.
    """
    _check_compilers(device)
    if _CACHE not in os.environ:
        # Torch's own folder, which all processes share, keeps the torn library of one that was killed while it compiled
        # and fails on it for ever.
        os.environ[_CACHE] = tempfile.mkdtemp(prefix="trainer-compiled-")
        atexit.register(shutil.rmtree, os.environ[_CACHE], ignore_errors=True)
    backbone = model.student.backbone if isinstance(model, LatentModel) else model.backbone
    for layer in backbone.layers if backbone is not None else ():
        layer.compile(dynamic=varying)
    if device.type == "cuda":
        model.logit_passes = fused_passes(varying=varying)


def _check_compilers(device: torch.device) -> None:
    instead = "or set student.compile to false"
    on_cuda = device.type == "cuda"
    if on_cuda and importlib.util.find_spec("triton") is None:
        raise TrainerError(f"student.compile=true needs the package triton on CUDA: install it, {instead}")
    # As triton and torch look for them.
    kind, variable, usual = ("C", "CC", ["gcc", "clang", "cc"]) if on_cuda else ("C++", "CXX", ["g++"])
    asked = os.environ.get(variable)
    names = [asked] if asked else usual
    if not any(map(shutil.which, names)):
        raise TrainerError(
            f"student.compile=true needs a {kind} compiler, and there is no {' or '.join(names)}: "
            f"install it, name another in {variable}, {instead}"
        )
