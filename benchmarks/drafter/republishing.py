"""The same weights published again as newer checkpoints, whole or spoilt, so that swaps can be tried under load."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.manifest import MANIFEST, ManifestDraft, step_folder
from latentforge.core.publishing import PARTS, publish_checkpoint

_WEIGHTS = Path("student") / "model.safetensors"
# Of a weights file, from its middle on: the header is at its beginning.
_FLIPPED = 0xFF


def republished(
    checkpoint: Path,
    root: Path,
    scratch: Path,
    change: Callable[[Path], None] = lambda folder: None,
    spoil: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """A checkpoint becomes the newest one of its run in ``root``, visible in one rename.

    Args:
        checkpoint: whose files are published again.
        root: the checkpoints folder.
        scratch: a folder on the same file system, where it is made.
        change: is given a copy of its parts before these are hashed.
        spoil: is given the checkpoint when it is whole, and not visible yet.

    Raises:
        CheckpointError: ``checkpoint`` is none.
        OSError: it cannot be written.
    """
    manifest = read_manifest(checkpoint)
    run = root / manifest.run
    run.mkdir(parents=True, exist_ok=True)
    # One that is spoilt has no manifest that could be read, but a name; servers put their leases beside them.
    steps = [int(place.name.removeprefix("step-")) for place in run.glob("step-*")]
    step = max([manifest.step - 1, *steps]) + 1

    def write(folder: Path) -> None:
        for part in PARTS:
            shutil.copytree(checkpoint / part, folder / part)
        change(folder)

    fields = {name: getattr(manifest, name) for name in ManifestDraft.model_fields}
    made = publish_checkpoint(scratch, manifest.run, step, ManifestDraft(**fields), write)
    spoil(made)
    place = run / step_folder(step)
    made.replace(place)
    return place


def flip_a_byte(folder: Path) -> None:
    """Of the weights, which are not those that were hashed then."""
    with (folder / _WEIGHTS).open("r+b") as file:
        middle = (folder / _WEIGHTS).stat().st_size // 2
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ _FLIPPED]))


def cut_short(folder: Path) -> None:
    """The weights end in their middle."""
    os.truncate(folder / _WEIGHTS, (folder / _WEIGHTS).stat().st_size // 2)


def lose_a_file(folder: Path) -> None:
    """The student's configuration is not there."""
    (folder / "student" / "config.json").unlink()


def break_the_manifest(folder: Path) -> None:
    """It ends in the middle."""
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    (folder / MANIFEST).write_text(text[: len(text) // 2], encoding="utf-8")


def put_in_nan(folder: Path) -> None:
    """Some weights are no numbers; files and hashes are sound."""
    _change_weights(folder, lambda tensor: tensor.index_fill_(0, torch.tensor(0), torch.nan))


def shuffle_weights(folder: Path) -> None:
    """Another model than the one whose golden text the manifest has; files and hashes are sound."""
    _change_weights(folder, lambda tensor: tensor.copy_(tensor.flip(0)))


#: What is done to a checkpoint before its files are hashed, and behind it.
CHANGES = {"nan": put_in_nan, "other_weights": shuffle_weights}
SPOILS = {
    "flipped_byte": flip_a_byte,
    "cut_short": cut_short,
    "lost_file": lose_a_file,
    "broken_manifest": break_the_manifest,
}


def _change_weights(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Changes the largest matrix."""
    weights = load_file(folder / _WEIGHTS)
    largest = max(
        (name for name, tensor in weights.items() if tensor.ndim == 2), key=lambda name: weights[name].numel()
    )
    change(weights[largest])
    save_file(weights, folder / _WEIGHTS)
