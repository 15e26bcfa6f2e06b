"""Which class of transformers a model is of, and the part of a multimodal one that text needs."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


class LanguagePart(nn.Module):
    """A multimodal model without what sees and hears; to the gateway it is a causal LM like any other.

    Args:
        model: one of transformers' models for text with images. What it shares with this one is not copied.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config: Any = model.config.get_text_config()
        self.generation_config: Any = model.generation_config
        self.base_model: Any = model.get_decoder()
        self._head: Any = model.get_output_embeddings()

    @property
    def device(self) -> torch.device:
        device: torch.device = self.base_model.device
        return device

    def get_output_embeddings(self) -> Any:
        return self._head


def auto_class(config: Any) -> Any:
    """The class of transformers that makes and loads the whole model of a configuration.

    Raises:
        ValueError: it is of no family that continues text.
    """
    kind = type(config)
    # Some families list a text-only class for the multimodal configuration; it would look for weights by other names.
    if _is_multimodal(config) and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"the {config.model_type} family has no model that continues text")
    return AutoModelForCausalLM


def text_part(model: Any) -> Any:
    """The model, or what of a multimodal one scores and continues text; the rest is free to go."""
    return LanguagePart(model) if _is_multimodal(model.config) else model


def whole_logits(model: Any, ids_bl: Tensor) -> Tensor:
    """Float32 logits [b, l, v] as the family itself makes them."""
    logits: Tensor = model(input_ids=ids_bl, use_cache=False).logits
    return logits.float()


def _is_multimodal(config: Any) -> bool:
    return config.get_text_config() is not config
