"""A model of parameters that are in memory already."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from latentforge.gateway.backends.base import BackendError
from latentforge.gateway.backends.local.text_part import auto_class
from latentforge.gateway.backends.local.weights import ReadWeights

_MOST_NAMED = 3


def whole_model(weights: ReadWeights, dtype: torch.dtype) -> Any:
    """The model of ``auto_class`` on the CPU, in memory that nothing else can change.

    Raises:
        BackendError: parameters of it are missing or of another shape, and which.
        OSError, ValueError, KeyError: transformers knows no such configuration.
    """
    config, generation = _configurations(weights)
    # transformers chooses the class; on "meta" that costs neither memory nor time.
    with torch.device("meta"):
        blank: Any = auto_class(config).from_config(config)
    model, report = type(blank).from_pretrained(
        None,
        config=blank.config,
        state_dict=weights.parameters,
        dtype=dtype,
        output_loading_info=True,
        # They are in the report, and what is in it is refused below.
        ignore_mismatched_sizes=True,
    )
    # They would be random numbers, which nobody may take for a teacher.
    if absent := sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"]):
        named = ", ".join(absent[:_MOST_NAMED])
        raise BackendError(
            f"its files lack {len(absent)} of the parameters that config.json describes, or have them in another "
            f"shape: {named}; copy the model again"
        )
    if generation is not None:
        model.generation_config = generation
    return model


def _configurations(weights: ReadWeights) -> tuple[Any, Any]:
    """config.json and generation_config.json, the latter None where there is none."""
    with TemporaryDirectory() as name:
        # transformers reads folders only; the model's own may hold another configuration by now.
        folder = Path(name)
        for file, content in weights.configuration.items():
            (folder / file).write_bytes(content)
        generation = (folder / "generation_config.json").is_file()
        return AutoConfig.from_pretrained(folder), GenerationConfig.from_pretrained(folder) if generation else None
