"""What GET /v1/models answers."""

from typing import Literal

from pydantic import BaseModel


class ModelCard(BaseModel):
    """A checkpoint that can be asked for.

    Attributes:
        id: what ``model`` is in a request.
        created: when it was published, seconds since 1970.
        root: the checkpoint that answers.
        max_model_len: tokens of prompt and answer together that always fit.
        chunk_size: K, tokens that one step writes.
        metrics: what its run measured on its evaluation split.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["latentforge"] = "latentforge"
    root: str
    max_model_len: int
    checkpoint: str
    run: str
    step: int
    chunk_size: int
    latent_size: int
    metrics: dict[str, float]
    system_fingerprint: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]
