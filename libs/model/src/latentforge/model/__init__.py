"""Autoencoder, student, losses, sampling, decoding; :class:`LatentStudent` is all of a published student."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentforge.model.pretrained import LatentStudent

__all__ = ["LatentStudent"]


def __getattr__(name: str) -> Any:
    """Imports what it needs, which is everything, only for those who ask."""
    if name == "LatentStudent":
        from latentforge.model.pretrained import LatentStudent

        return LatentStudent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
