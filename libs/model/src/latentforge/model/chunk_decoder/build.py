"""From a config to its chunk decoder."""

from latentforge.model.chunk_decoder.base import ChunkDecoder
from latentforge.model.chunk_decoder.recurrent import RecurrentDecoder
from latentforge.model.chunk_decoder.split import SplitDecoder
from latentforge.model.chunk_decoder.windowed import GruDecoder, TransformerDecoder
from latentforge.model.config import StudentConfig


def build_chunk_decoder(config: StudentConfig) -> ChunkDecoder | None:
    """The decoder that a student's config asks for; None for ``kind="none"``."""
    match config.chunk_decoder.kind:
        case "gru":
            return GruDecoder(config)
        case "transformer":
            return TransformerDecoder(config)
        case "recurrent":
            return RecurrentDecoder(config)
        case "split":
            return SplitDecoder(config)
        case "none":
            return None
