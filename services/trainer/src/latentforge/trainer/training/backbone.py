"""Starting a student's backbone from another model's."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from latentforge.trainer.errors import TrainerError

_PREFIXES = {"token-level": "backbone.", "qwen3": "model."}


def load_backbone(backbone: nn.Module, folder: Path) -> None:
    """Copies the layers of a token-level student, or of a Qwen3 model of transformers, into a backbone.

    The layers see chunks where they saw tokens; what they have learnt about mixing positions is what is kept.

    Raises:
        TrainerError: the folder holds neither, or its sizes are others; names the first tensor that differs.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        prefix = _PREFIXES[config.get("kind") or config["model_type"]]
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise TrainerError(
            f"student.init_backbone={folder}: {error!r}; give the folder of a token-level student or of a Qwen3 model, "
            "with config.json and model.safetensors"
        ) from None
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    for name, ours in backbone.state_dict().items():
        theirs = found.get(name)
        if theirs is None or theirs.shape != ours.shape:
            shape = "missing" if theirs is None else f"{tuple(theirs.shape)}"
            raise TrainerError(
                f"student.init_backbone={folder}: {name} is {shape} there and {tuple(ours.shape)} here; give "
                "student.model the same sizes"
            )
    backbone.load_state_dict({name: found[name].float() for name in backbone.state_dict()})
