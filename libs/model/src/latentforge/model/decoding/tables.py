"""How tables and matrices are stored for the few vectors that a step multiplies them with."""

import torch
from torch import Tensor

from latentforge.model.latent_model import LatentModel
from latentforge.model.token_level import TokenLevelModel

# What is smaller stays in a processor's caches from token to token.
_CACHED_BYTES = 4 * 2**20


def is_better_by_column(table: Tensor) -> bool:
    """Whether MKL may be faster with it: other number formats are much slower so."""
    return table.dtype == torch.float32 and table.device.type == "cpu"


@torch.no_grad()
def store_by_column(table: Tensor) -> None:
    """Stores a float32 table on a CPU column by column; values and shape stay.

    MKL multiplies a table that is larger than the caches with one vector two to four times as fast when it is stored
    so, and with 4 to 16 vectors 1.2 to 1.4 times as fast. One that fits the caches is 1.2 to 1.7 times as fast with one
    vector, and a tenth slower with more (a processor with AVX-512, one thread). For a model that from now on only
    writes: safetensors does not save such a table.
    """
    if is_better_by_column(table):
        table.data = table.data.T.contiguous().T


def store_for_decoding(model: LatentModel | TokenLevelModel, *, one_by_one: bool) -> None:
    """Stores the model's output tables as its decoding reads them best; ``one_by_one``: always of a single text."""
    if isinstance(model, TokenLevelModel):
        token_tables: list[Tensor] = [model.output_table.weight]
    else:
        decoder = model.student.chunk_decoder
        token_tables = [] if decoder is None else [decoder.output.weight]
        # It is multiplied with K vectors of every text.
        if model.output_weight.nbytes > _CACHED_BYTES:
            store_by_column(model.output_weight)
    for table in token_tables:
        if one_by_one or table.nbytes > _CACHED_BYTES:
            store_by_column(table)
