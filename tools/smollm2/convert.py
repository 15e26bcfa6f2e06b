"""Writes a GGUF model as safetensors in bfloat16, with its tokenizer and chat template.

Run by an environment with transformers, gguf and accelerate, which has nothing of ours.

Usage: python convert.py MODEL.gguf FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM


def convert(gguf: Path, folder: Path) -> None:
    """Dequantises in float32; what is saved is rounded to bfloat16, in which the model was trained."""
    source: dict[str, Any] = {"gguf_file": gguf.name}
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    config = model.config
    # It is not quantised any more.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain: Any = LlamaForCausalLM(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
