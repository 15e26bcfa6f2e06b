"""A pretrained causal language model on disk, as far as a student starts from it: sizes, layers and token tables.

Models of transformers with the architecture of Qwen3 or Llama, whose weights may be in several files, and token-level
students of ours. Only JSON and safetensors are read; what is read into memory is what is asked for.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig

from latentforge.core.errors import describe_errors
from latentforge.core.manifest import CheckpointError
from latentforge.model.backbone import build_backbone
from latentforge.model.config import BackboneConfig, TokenLevelConfig
from latentforge.model.hub import download
from latentforge.model.io import CONFIG_FILE, WEIGHTS_FILE
from latentforge.model.layers import TABLE_SCALE, output_scale

INDEX_FILE = "model.safetensors.index.json"
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]
_ARCHITECTURES = {"qwen3": True, "llama": False}
# Fields of BackboneConfig that layers decide.
SIZES = (
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "qk_norm",
    "norm_eps",
    "rope_theta",
    "rope_scaling",
)


@dataclass(frozen=True)
class _Table:
    """A token table [V, h]: a tensor's name, and what it is multiplied by; a narrow one [V, d] has a map to the layers.

    Attributes:
        name, scale: of the tensor.
        width: d; None is h, and there is no map.
        map: name of the tensor [d, h] that a narrow table is multiplied with.
        turned: whether that tensor is [h, d].
        bias: name of what is added then, [h]; None adds nothing.
    """

    name: str
    scale: float = 1.0
    width: int | None = None
    map: str = ""
    turned: bool = False
    bias: str | None = None

    def shapes(self, vocab_size: int, hidden_size: int) -> dict[str, list[int]]:
        """Of its tensors, by name."""
        if self.width is None:
            return {self.name: [vocab_size, hidden_size]}
        shapes = {self.name: [vocab_size, self.width], self.map: [self.width, hidden_size]}
        if self.turned:
            shapes[self.map].reverse()
        return shapes if self.bias is None else shapes | {self.bias: [hidden_size]}


@dataclass(frozen=True)
class CausalLM:
    """A pretrained model that is checked: every tensor that a student can take is there, and has its size.

    Attributes:
        folder: where its files are.
        tokenizer_folder: where its tokenizer is, if it has one.
        sizes: fields of BackboneConfig that its layers decide, see SIZES.
        vocab_size: rows of its token tables, V.
        max_positions: tokens that it was made for.
    """

    folder: Path
    tokenizer_folder: Path
    sizes: Mapping[str, Any]
    vocab_size: int
    max_positions: int
    _kept: Sequence[int]
    _files: Mapping[str, Path]
    _prefix: str
    _inputs: _Table
    _outputs: _Table

    def layers(self) -> dict[str, Tensor]:
        """The state of a backbone of these sizes, float32."""
        with torch.device("meta"):
            names = build_backbone(_backbone(self.sizes), 1).state_dict()
        return {name: self._tensor(self._prefix + self._kept_name(name)) for name in names}

    def with_layers(self, kept: Sequence[int]) -> "CausalLM":
        """The same model with some of its layers alone, by their numbers from 0, ascending.

        Raises:
            ValueError: it has no such layer, or they do not ascend.
        """
        num = self.sizes["num_layers"]
        if not kept or list(kept) != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < num:
            raise ValueError(f"it has the layers 0 to {num - 1}; give some of these, each once, in ascending order")
        layers = [self._kept[number] for number in kept]
        return replace(self, sizes={**self.sizes, "num_layers": len(layers)}, _kept=layers)

    def _kept_name(self, name: str) -> str:
        """A tensor's name in the files, of its name in a backbone."""
        part, _, rest = name.partition(".")
        if part != "layers":
            return name
        number, _, inside = rest.partition(".")
        return f"{part}.{self._kept[int(number)]}.{inside}"

    def inputs(self) -> Tensor:
        """The token embeddings as the layers read them, float32 [V, h]."""
        return self._table(self._inputs)

    def outputs(self) -> Tensor:
        """What the last hidden states are multiplied with for logits, float32 [V, h]."""
        return self._table(self._outputs)

    def _table(self, table: _Table) -> Tensor:
        tensor = self._tensor(table.name)
        if table.scale != 1:
            tensor = tensor * table.scale
        if table.width is None:
            return tensor
        back = self._tensor(table.map)
        whole = tensor @ (back.T if table.turned else back)
        return whole if table.bias is None else whole + self._tensor(table.bias)

    def _tensor(self, name: str) -> Tensor:
        with _opened(self._files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor.float()


def open_causal_lm(place: str) -> CausalLM:
    """Finds a pretrained model and checks it, without reading its weights.

    Args:
        place: a folder, or a model of the hub, ``owner/name``, which is downloaded where it is not there yet.

    Raises:
        ValueError: there is none, or a student cannot start from it: another architecture, biases, sliding windows,
            quantised or missing weights; the message names it.
    """
    folder = Path(place)
    if not folder.is_dir():
        try:
            folder = download(place, wanted=_HUB_FILES)
        except CheckpointError as error:
            raise ValueError(str(error)) from error
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; give a model's folder, with config.json and its safetensors") from error
    if isinstance(config, dict) and config.get("kind") == "token-level":
        found = _ours(folder, config)
    else:
        found = _transformers(folder, config)
    _check_shapes(found)
    return found


def _ours(folder: Path, config: dict[str, Any]) -> CausalLM:
    path = folder / CONFIG_FILE
    try:
        own = TokenLevelConfig.model_validate({name: value for name, value in config.items() if name != "kind"})
    except ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(describe_errors(error))}") from error
    return CausalLM(
        folder=folder,
        tokenizer_folder=folder / "tokenizer",
        sizes=own.model_dump(include=set(SIZES)),
        vocab_size=own.vocab_size,
        max_positions=own.max_tokens,
        _kept=range(own.num_layers),
        _files=_files(folder),
        _prefix="backbone.",
        _inputs=_Table(
            "embedding.weight", TABLE_SCALE, own.embed_size, "input_map.weight", turned=True, bias="input_map.bias"
        ),
        _outputs=_Table("output_table.weight", output_scale(own.output_width), own.output_rank, "output_map.weight"),
    )


def _transformers(folder: Path, config: Any) -> CausalLM:
    path = folder / CONFIG_FILE
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in _ARCHITECTURES:
        raise ValueError(
            f"{path}: model_type is {kind!r}; give a model of the architecture {' or '.join(_ARCHITECTURES)}, or a "
            "token-level student's folder"
        )
    try:
        # What a config leaves out has a default there, and several spellings of the rotary embedding become one.
        full: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error
    for field, wanted in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if (value := getattr(full, field, wanted)) != wanted:
            raise ValueError(
                f"{path}: {field} is {value!r}, and a student's layers have {wanted!r}; give another model"
            )
    if sliding := sorted(set(getattr(full, "layer_types", None) or []) - {"full_attention"}):
        raise ValueError(f"{path}: layer_types has {sliding[0]!r}, and a student's layers attend to all; give another")
    if getattr(full, "quantization_config", None):
        raise ValueError(f"{path}: its weights are quantised; give the model as it was before, in 16 or 32 bits")
    rope = dict(full.rope_parameters)
    theta = rope.pop("rope_theta")
    files = _files(folder)
    inputs = _Table("model.embed_tokens.weight")
    return CausalLM(
        folder=folder,
        tokenizer_folder=folder,
        sizes={
            "hidden_size": full.hidden_size,
            "num_layers": full.num_hidden_layers,
            "num_heads": full.num_attention_heads,
            "num_kv_heads": full.num_key_value_heads,
            "head_dim": full.head_dim,
            "intermediate_size": full.intermediate_size,
            "qk_norm": _ARCHITECTURES[kind],
            "norm_eps": full.rms_norm_eps,
            "rope_theta": float(theta),
            "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
        },
        vocab_size=full.vocab_size,
        max_positions=full.max_position_embeddings,
        _kept=range(full.num_hidden_layers),
        _files=files,
        _prefix="model.",
        _inputs=inputs,
        _outputs=inputs if full.tie_word_embeddings else _Table("lm_head.weight"),
    )


def _files(folder: Path) -> dict[str, Path]:
    """The file that each tensor is in."""
    index = folder / INDEX_FILE
    if not index.is_file():
        path = folder / WEIGHTS_FILE
        with _opened(path) as file:
            return dict.fromkeys(file.keys(), path)
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        # A file elsewhere is none of the model's.
        return {name: folder / Path(file).name for name, file in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: {error!r}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: {error}") from error


def _check_shapes(model: CausalLM) -> None:
    try:
        config = _backbone(model.sizes)
    except ValidationError as error:
        raise ValueError(f"{model.folder / CONFIG_FILE}: {'; '.join(describe_errors(error))}") from error
    with torch.device("meta"):
        layers = build_backbone(config, 1).state_dict()
    wanted = {model._prefix + name: list(tensor.shape) for name, tensor in layers.items()}
    for table in (model._inputs, model._outputs):
        wanted |= table.shapes(model.vocab_size, config.hidden_size)
    by_file: dict[Path, list[str]] = {}
    for name in wanted:
        if name not in model._files:
            raise ValueError(f"{model.folder}: its weights have no {name}; the model is another than its config says")
        by_file.setdefault(model._files[name], []).append(name)
    for path, names in by_file.items():
        with _opened(path) as file:
            for name in names:
                found = file.get_slice(name).get_shape()
                if found != wanted[name]:
                    raise ValueError(f"{path}: {name} has the shape {found}, and its config wants {wanted[name]}")
    deeper = f"{model._prefix}layers.{config.num_layers}."
    if more := [name for name in model._files if name.startswith(deeper)]:
        raise ValueError(f"{model.folder}: its weights have {more[0]}, but its config only {config.num_layers} layers")


def _backbone(sizes: Mapping[str, Any]) -> BackboneConfig:
    return BackboneConfig(vocab_size=2, pad_id=0, eos_id=1, **sizes)
