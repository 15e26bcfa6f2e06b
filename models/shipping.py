"""From a run's checkpoint to one that is small enough to ship."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load, save_file

from latentforge.core.files import replacing, write_atomically
from latentforge.core.manifest import MANIFEST, ManifestDraft
from latentforge.core.publishing import manifest_of
from latentforge.model.golden import golden_of
from latentforge.model.io import WEIGHTS_FILE, load_autoencoder, load_student
from latentforge.model.latent_model import LatentModel
from latentforge.model.model_card import CARD
from latentforge.model.model_card import model_card as checkpoint_card
from latentforge.text.tokenizer import TextTokenizer

# Of the part of a card that is measured anew, and stands last.
FIGURES = "## Measured\n"
# From a student's tokenizer to its golden text.
GoldenText = Callable[[TextTokenizer], str]


def license_of(recipe: Path) -> str:
    """Of the weights that a recipe makes."""
    name: str = tomllib.loads(recipe.read_text(encoding="utf-8"))["license"]
    return name


def sections_by_hand(card: str) -> str:
    """What stands in a card between the part about how it was made and the figures: nobody measures that anew."""
    about = card.partition(FIGURES)[0]
    _, heading, rest = about.partition("\n## ")
    return heading.lstrip() + rest


def renew_manifest(checkpoint: Path, license_name: str, text: GoldenText | None = None) -> None:
    """Writes a checkpoint's manifest in the format of this version, and its model card: weights and tokenizer stay, the
    golden text's figures are new, and its run is called as the folder that it stands in.

    Args:
        license_name: of the weights.
        text: makes the golden text; None leaves it.
    """
    path = checkpoint / MANIFEST
    old = json.loads(path.read_text(encoding="utf-8"))
    tokenizer = TextTokenizer(checkpoint / "tokenizer", bos=old["bos_id"] is not None if "bos_id" in old else None)
    golden = old["golden"]["text"] if text is None else text(tokenizer)
    model = LatentModel(load_autoencoder(checkpoint / "autoencoder"), load_student(checkpoint / "student"))
    known = {name: old[name] for name in ManifestDraft.model_fields if name in old and name != "golden"}
    figures = golden_of(model, golden, tokenizer.begin(tokenizer.encode(golden)))
    draft = ManifestDraft.model_validate(known | {"golden": figures, "end_ids": sorted(tokenizer.end_ids)})
    run = checkpoint.parent.name
    card = checkpoint_card(model, draft, f"{run}/{checkpoint.name}", license_name)
    write_atomically(checkpoint / CARD, card)
    write_atomically(path, manifest_of(checkpoint, run, old["step"], old["created"], draft))


def store_in_bfloat16(checkpoint: Path, license_name: str, text: GoldenText | None = None) -> None:
    """Rounds a checkpoint's weights, which take half of the room then; arguments as of :func:`renew_manifest`."""
    for part in ("autoencoder", "student"):
        path = checkpoint / part / WEIGHTS_FILE
        weights = load(path.read_bytes())
        rounded = {name: value.bfloat16() if value.is_floating_point() else value for name, value in weights.items()}
        with replacing(path) as temporary:
            save_file(rounded, temporary)
    renew_manifest(checkpoint, license_name, text)
