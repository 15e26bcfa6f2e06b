"""What a decoding of any model is made of."""

from typing import NamedTuple

from latentforge.model.chunk_decoder.carried import CarriedDecoder
from latentforge.model.chunk_decoder.split import SplitDecoder
from latentforge.model.decoding.backbone import ConstantBackbone, SlotBackbone
from latentforge.model.decoding.induction import SlotInduction
from latentforge.model.decoding.text_states import SlotStates
from latentforge.model.decoding.token_positions import TokenPositions
from latentforge.model.decoding.writers import ChunkWriter, LatentWriter, TokenWriter
from latentforge.model.latent_model import LatentModel
from latentforge.model.student import Student
from latentforge.model.token_level import TokenLevelModel


class DecodingParts(NamedTuple):
    """The backbone, a recurrent decoder's states and the induction heads with their memory, and the writer.

    Attributes:
        context: of the induction heads.
    """

    backbone: SlotBackbone | TokenPositions | ConstantBackbone
    states: SlotStates | None
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
    states, backbone = None, _backbone(student, num_slots, max_tokens, by_column=by_column)
    writer: ChunkWriter
    if isinstance(model, TokenLevelModel):
        writer = TokenWriter(model, found_map)
    else:
        if isinstance(model.student.chunk_decoder, CarriedDecoder):
            states = SlotStates(model.student.chunk_decoder, num_slots)
        positions = backbone if isinstance(backbone, TokenPositions) else None
        writer = LatentWriter(model, num_slots, states, positions, found_map, by_column=by_column)
    return DecodingParts(backbone, states, induction, writer, k, config.pad_id, config.induction.context)


def _backbone(
    student: Student | TokenLevelModel, num_slots: int, max_tokens: int, *, by_column: bool
) -> SlotBackbone | TokenPositions | ConstantBackbone:
    if student.backbone is None:
        return ConstantBackbone(student.constant)
    if isinstance(student, TokenLevelModel):
        return SlotBackbone(student.backbone, num_slots, max_tokens, by_column=by_column)
    k, decoder = student.config.chunk_size, student.chunk_decoder
    if not student.reads_tokens:
        return SlotBackbone(student.backbone, num_slots, max_tokens // k, by_column=by_column)
    kept = student.config.num_layers - decoder.num_last if isinstance(decoder, SplitDecoder) else None
    return TokenPositions(
        SlotBackbone(student.backbone, num_slots, max_tokens, by_column=by_column, kept_layer=kept), k
    )
