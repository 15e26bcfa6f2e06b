"""How fast models that are there write: published students, token-level ones and pretrained ones, in turns."""

import json
import statistics
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path

from rich.console import Console

from experiments.results import ModelResult
from experiments.speed import AnyModel, Speed, load_model, measure_speed
from latentforge.core.checkpoints import list_checkpoints
from latentforge.model.causal_lm import CausalLM, open_causal_lm
from latentforge.model.config import TokenLevelConfig
from latentforge.model.initialisation import PARTS, start_token_level
from latentforge.model.io import CONFIG_FILE
from latentforge.model.token_level import TokenLevelModel

_TOKEN_LEVEL = "token-level"
# Of a pretrained model, whose end of text is of no matter to its speed.
_EOS, _PAD = 0, 1


def pace_results(folders: Sequence[Path], *, new_tokens: int, repeats: int, seed: int) -> list[ModelResult]:
    """Tokens/s of models, one request at a time and 16 at once; each beside the first.

    Args:
        folders: as of :func:`opened`, each of another name.
        new_tokens, repeats, seed: as of :func:`measure_speed`.

    Raises:
        ValueError: a folder has no model, or two have one name.
    """
    models: dict[str, AnyModel] = {}
    for folder in folders:
        if (name := name_of(folder)) in models:
            raise ValueError(f"two models are called {name}; give one of them")
        models[name] = opened(folder)
    names = {name: name for name in models}
    speeds = measure_speed(
        models, names, new_tokens=new_tokens, repeats=repeats, seed=seed, console=Console(stderr=True)
    )
    return [result for name in models for result in _results(name, speeds)]


def name_of(folder: Path) -> str:
    """A model's name: its folder's, or its run's where that is called token-level."""
    place = folder.resolve()
    return place.parent.name if place.name == _TOKEN_LEVEL else place.name


def opened(folder: Path) -> AnyModel:
    """A run's newest checkpoint, a token-level student, or a pretrained model as the token-level student that it is.

    Raises:
        ValueError: there is none of them.
    """
    if list_checkpoints(folder):
        return load_model(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder} has neither checkpoints nor {CONFIG_FILE}; give a run's folder of checkpoints/")
    if json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("kind") == _TOKEN_LEVEL:
        return load_model(folder)
    return _of_pretrained(open_causal_lm(str(folder)))


def _of_pretrained(source: CausalLM) -> TokenLevelModel:
    config = TokenLevelConfig(
        vocab_size=source.vocab_size, pad_id=_PAD, eos_id=_EOS, max_tokens=source.max_positions, **source.sizes
    )
    model = TokenLevelModel(config)
    start_token_level(model, source, PARTS)
    return model.eval()


def _results(name: str, speeds: Mapping[str, Speed]) -> list[ModelResult]:
    first = next(iter(speeds))
    found = []
    for suffix, of in (("", attrgetter("one")), ("_16", attrgetter("many"))):
        ours, theirs = of(speeds[name]), of(speeds[first])
        value, other = statistics.median(ours), statistics.median(theirs)
        result = ModelResult(id=f"pace_{name}{suffix}", value=value, unit="tokens/s")
        if name != first:
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            beside = {"baseline": first, "baseline_value": other, "ratio": value / other}
            result = result.model_copy(update=beside | {"low": min(ratios), "high": max(ratios)})
        found.append(result)
    return found
