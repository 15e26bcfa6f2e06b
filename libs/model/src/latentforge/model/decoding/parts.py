"""What a decoding of any model is made of."""

from typing import NamedTuple

from latentforge.model.decoding.backbone import SlotBackbone
from latentforge.model.decoding.induction import SlotInduction
from latentforge.model.decoding.writers import ChunkWriter, LatentWriter, TokenWriter
from latentforge.model.latent_model import LatentModel
from latentforge.model.student import Student
from latentforge.model.token_level import TokenLevelModel


class DecodingParts(NamedTuple):
    """The backbone and the induction heads with their memory, and the writer.

    Attributes:
        context: of the induction heads.
    """

    backbone: SlotBackbone
    induction: SlotInduction | None
    writer: ChunkWriter
    chunk_size: int
    pad_id: int
    context: int


def decoding_parts(
    model: LatentModel | TokenLevelModel, num_slots: int, max_tokens: int, *, by_column: bool = False
) -> DecodingParts:
    """The parts of a model, with memory for so many texts of up to so many tokens, a multiple of K.

    ``by_column`` is how fused weights are stored, see :func:`fused_weight`.
    """
    student: Student | TokenLevelModel = model if isinstance(model, TokenLevelModel) else model.student
    config, k = student.config, model.chunk_size
    induction = None
    if student.induction is not None:
        induction = SlotInduction(student.induction, num_slots, max_tokens, k, config.pad_id)
    found_map = None if induction is None else induction.out
    writer: ChunkWriter
    if isinstance(model, TokenLevelModel):
        writer = TokenWriter(model, found_map)
    else:
        writer = LatentWriter(model, num_slots, found_map, by_column=by_column)
    backbone = SlotBackbone(student.backbone, num_slots, max_tokens // k, by_column=by_column)
    return DecodingParts(backbone, induction, writer, k, config.pad_id, config.induction.context)
