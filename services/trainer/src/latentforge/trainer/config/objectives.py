"""What a student can learn from, by name: the terms of its loss and the parts of the model that they need."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Objective:
    """One way to teach a student.

    Attributes:
        about: what it is, for people.
        values: of a recipe's [student] section, nested.
    """

    about: str
    values: Mapping[str, Any]


def _weights(**terms: float) -> dict[str, float]:
    return dict.fromkeys(("ce", "kd", "tv", "reverse_kl", "mse", "energy"), 0.0) | terms


def _chunk(weights: dict[str, float], features: str = "autoencoder", **model: Any) -> dict[str, Any]:
    """A causal chunk decoder, whichever the recipe has, over logit features of a kind."""
    return {"weights": weights, "model": {"head": "deterministic", "logit_features": {"kind": features}, **model}}


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        "regressed-latent": Objective(
            "MSE + CE + KD on a regressed latent; the tokens of a chunk do not know each other",
            {
                "weights": _weights(ce=1.0, kd=1.0, mse=1.0),
                "model": {
                    "head": "deterministic",
                    "logit_features": {"kind": "autoencoder"},
                    "chunk_decoder": {"kind": "none"},
                    "induction": {"context": 0},
                },
            },
        ),
        "energy": Objective(
            "CALM's energy score of sampled latents alone; no likelihood but the mixture bound",
            {
                "weights": _weights(energy=1.0),
                "model": {
                    "head": "energy",
                    "logit_features": {"kind": "autoencoder"},
                    "chunk_decoder": {"kind": "none"},
                    "induction": {"context": 0},
                },
            },
        ),
        "chunk-ce": Objective("causal chunk decoder, CE", _chunk(_weights(ce=1.0))),
        "chunk-kd": Objective("causal chunk decoder, CE and KD with the tail bucket", _chunk(_weights(ce=1.0, kd=1.0))),
        "chunk-kd-heavy": Objective("chunk-kd, with KD weighing eight times the CE", _chunk(_weights(ce=0.25, kd=2.0))),
        "chunk-tv": Objective(
            "chunk-kd-heavy and the total variation: 1 - TV is the acceptance of a draft",
            _chunk(_weights(ce=0.25, kd=2.0, tv=2.0)),
        ),
        "chunk-reverse-kl": Objective(
            "chunk-kd-heavy and KL(student ‖ teacher), which keeps to what the teacher would write",
            _chunk(_weights(ce=0.25, kd=2.0, reverse_kl=0.5)),
        ),
        "chunk-kd-linear": Objective(
            "chunk-kd, with a linear map from the hidden state in place of latent and autoencoder",
            _chunk(_weights(ce=1.0, kd=1.0), "linear"),
        ),
        "chunk-kd-mse": Objective(
            "chunk-kd and the MSE towards the autoencoder's latent", _chunk(_weights(ce=1.0, kd=1.0, mse=0.1))
        ),
        "chunk-kd-energy": Objective(
            "chunk-kd on the first sample of an energy head, and the energy score of all",
            _chunk(_weights(ce=1.0, kd=1.0, energy=0.1), head="energy"),
        ),
    }
)
DEFAULT_OBJECTIVE = "chunk-kd-heavy"


def apply_objective(student: dict[str, Any], asked: str | None) -> None:
    """Fills in what an objective decides of a recipe's [student] section, in place.

    Args:
        student: the section; what stands in it is kept, unless an objective is asked for.
        asked: on the command line: it decides over what stands in the recipe, and is recorded there.
    """
    name = asked or student.get("objective", DEFAULT_OBJECTIVE)
    if name not in OBJECTIVES:
        # Left to the recipe's own validation, which names the field.
        student["objective"] = name
        return
    if asked:
        student["objective"] = asked
    _fill(student, OBJECTIVES[name].values, over=asked is not None)


def _fill(section: dict[str, Any], values: Mapping[str, Any], *, over: bool) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner = section.setdefault(key, {})
            if isinstance(inner, dict):
                _fill(inner, value, over=over)
        elif over or key not in section:
            section[key] = value
