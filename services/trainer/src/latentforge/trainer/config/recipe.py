"""Recipes: everything that a run's result depends on, from TOML, checked before any work starts."""

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from latentforge.core.devices import DeviceName
from latentforge.core.errors import describe_errors
from latentforge.model.config import AutoencoderConfig, BackboneConfig, StudentConfig, TokenLevelConfig
from latentforge.trainer.config.objectives import OBJECTIVES, apply_objective
from latentforge.trainer.config.pretrained import check_widths, with_pretrained_sizes
from latentforge.trainer.config.sections import AutoencoderRecipe, DataRecipe, Section, StudentRecipe, TeacherRecipe
from latentforge.trainer.errors import RecipeError

C = TypeVar("C", bound=BaseModel)


class Recipe(Section):
    """One run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run unless --run does.")
    seed: int = Field(0, ge=0, description="Of weights, sequence order and noise.")
    chunk_size: int = Field(8, ge=1, description="K.")
    vocab_size: int | None = Field(
        None, ge=1, description="Ids of the models; unset takes the tokenizer's. Covers the teacher's output layer."
    )
    device: DeviceName = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes CUDA where there is one.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of the forward pass; weights and optimizer state stay float32."
    )
    distributed: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="How several processes hold the student: ddp, each the whole; fsdp, a piece each.",
    )
    tf32: bool = Field(
        False,
        description="Whether CUDA multiplies float32 numbers in TF32: several times as fast, of 10 bits instead of 23.",
    )
    license: str = Field(
        "unknown", description="Of the weights, for the model card: as the Hugging Face hub names it, like mit."
    )
    data: DataRecipe = Field(DataRecipe(), description="How text becomes sequences.")
    teacher: TeacherRecipe = Field(TeacherRecipe(), description="What is asked of the teacher.")
    autoencoder: AutoencoderRecipe = Field(description="The autoencoder and its training.")
    student: StudentRecipe = Field(description="The student and its training.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        length, k = self.data.sequence_length, self.chunk_size
        if length % k or length < 2 * k:
            raise ValueError(f"data.sequence_length={length} is not a multiple (2 or more) of chunk_size={k}")
        if self.student.objective not in OBJECTIVES:
            raise ValueError(f"student.objective is {self.student.objective!r}; choose one of {', '.join(OBJECTIVES)}")
        decoder = self.student.model.get("chunk_decoder", {})
        kind = decoder.get("kind") if isinstance(decoder, dict) else None
        if self.student.objective.startswith("chunk-") and kind == "none":
            raise ValueError(
                f"student.objective={self.student.objective!r} with student.model.chunk_decoder.kind='none': it needs "
                "a chunk decoder; set kind to 'gru', 'transformer' or 'recurrent', or choose the objective "
                "regressed-latent"
            )
        if self.student.activation_checkpointing and self.student.model.get("num_layers") == 0:
            raise ValueError(
                "student.activation_checkpointing=true with student.model.num_layers=0: there are no layers to compute "
                "twice; set it to false"
            )
        weights, head = self.student.weights, self.student.model.get("head", "deterministic")
        if weights.energy and head != "energy":
            raise ValueError(
                f"student.weights.energy={weights.energy} needs student.model.head='energy', which is {head!r}"
            )
        for name in ("kd", "tv", "reverse_kl"):
            if self.teacher.targets == "text" and (weight := getattr(weights, name)):
                raise ValueError(
                    f"student.weights.{name}={weight} with teacher.targets='text': without a teacher there is nothing "
                    "to distil; set the weight to 0, or choose the objective chunk-ce"
                )
        if not any(weights.model_dump().values()):
            raise ValueError("student.weights are all 0; give at least one term a weight")
        self._check_share()
        self._check_targets_from()
        if self.student.init_checkpoint is not None and self.student.init_from is not None:
            raise ValueError(
                f"student.init_from={self.student.init_from} and student.init_checkpoint={self.student.init_checkpoint}"
                ": a student starts from one of them; leave the other out"
            )
        self._check_on_policy()
        return self

    def _check_share(self) -> None:
        share, weights = self.teacher.share, self.student.weights
        if share == 1.0:
            return
        if self.teacher.targets in ("generate", "text"):
            raise ValueError(
                f"teacher.share={share} with teacher.targets={self.teacher.targets!r}: it says how much of the data is "
                "scored; set targets to score or auto, or share to 1"
            )
        if not (weights.ce or weights.mse or weights.energy):
            raise ValueError(
                f"teacher.share={share} with student.weights.ce=0: a sequence without the teacher's rows would teach "
                "nothing; set the weight above 0, or share to 1"
            )

    def _check_targets_from(self) -> None:
        folders, on_policy = self.teacher.targets_from, self.student.on_policy.share
        if folders and self.teacher.targets == "text":
            raise ValueError(
                f"teacher.targets_from={[str(f) for f in folders]} with teacher.targets='text': without a teacher "
                "there are no rows to read; set targets to score or auto, or take the folders out"
            )
        if folders and on_policy:
            raise ValueError(
                f"student.on_policy.share={on_policy} with teacher.targets_from: what the student writes can only be "
                "scored by a gateway, as it is written; set share to 0, or take the folders out and start a gateway"
            )

    def _check_on_policy(self) -> None:
        on_policy = self.student.on_policy
        if not on_policy.share:
            return
        asked = f"student.on_policy.share={on_policy.share}"
        weights = self.student.weights
        if not (weights.kd or weights.tv or weights.reverse_kl):
            raise ValueError(
                f"{asked} with student.weights.kd=0, and tv and reverse_kl too: all that on-policy text teaches is the "
                "teacher's rows; set one above 0, or share to 0"
            )
        if self.teacher.targets in ("generate", "text"):
            raise ValueError(
                f"{asked} with teacher.targets={self.teacher.targets!r}: the teacher has to score what the student "
                "writes; set targets to score or auto, or share to 0"
            )
        wanted = on_policy.prompt_tokens + on_policy.max_tokens + self.chunk_size
        if wanted > self.data.sequence_length:
            raise ValueError(
                f"student.on_policy.prompt_tokens={on_policy.prompt_tokens} and max_tokens={on_policy.max_tokens} take "
                f"{wanted} with a chunk of pads, but data.sequence_length is {self.data.sequence_length}; shorten one"
            )

    def with_autoencoder_epochs(self, epochs: float, num_tokens: int) -> Self:
        """The same with as many steps of the autoencoder as make so many passes over a text."""
        optim = self.autoencoder.optim
        steps = math.ceil(epochs * (num_tokens // self.chunk_size) / optim.batch_size)
        optim = optim.model_copy(update={"steps": steps})
        return self.model_copy(update={"autoencoder": self.autoencoder.model_copy(update={"optim": optim})})

    def autoencoder_config(self, vocab_size: int, pad_id: int) -> AutoencoderConfig:
        return _build(
            AutoencoderConfig,
            "autoencoder.model",
            self.autoencoder.model,
            {"vocab_size": self.vocab_size or vocab_size, "chunk_size": self.chunk_size, "pad_id": pad_id},
        )

    def student_config(self, pad_id: int, eos_id: int, autoencoder: AutoencoderConfig) -> StudentConfig:
        """Of a student that is trained with this autoencoder."""
        chosen = {"max_chunks": self.data.sequence_length // self.chunk_size, **self.student.model}
        features = chosen.get("logit_features")
        if isinstance(features, dict) and features.get("kind") == "embeddings":
            chosen["logit_features"] = {"width": autoencoder.hidden_size, **features}
        config = _build(
            StudentConfig,
            "student.model",
            chosen,
            {
                "vocab_size": autoencoder.vocab_size,
                "chunk_size": self.chunk_size,
                "latent_size": autoencoder.latent_size,
                "pad_id": pad_id,
                "eos_id": eos_id,
            },
        )
        if config.chunk_decoder.kind == "split" and self.distributed == "fsdp":
            raise RecipeError(
                "student.model.chunk_decoder.kind is 'split' and distributed is 'fsdp', which gathers a layer when it "
                "runs, but split layers run in parts; set distributed to ddp, or take another decoder"
            )
        return config

    def token_level_config(self, vocab_size: int, pad_id: int, eos_id: int) -> TokenLevelConfig:
        """Of a token-level student with the student's backbone."""
        sizes = {name: value for name, value in self.student.model.items() if name in BackboneConfig.model_fields}
        ids = {"vocab_size": self.vocab_size or vocab_size, "pad_id": pad_id, "eos_id": eos_id}
        fixed = {"max_tokens": self.data.sequence_length, **ids, **self.student.token_level.model_dump()}
        return _build(TokenLevelConfig, "student.model", sizes, fixed)


def _build(config: type[C], section: str, chosen: Mapping[str, Any], fixed: dict[str, Any]) -> C:
    if clash := sorted(set(chosen) & set(fixed)):
        raise RecipeError(
            f"{section}.{clash[0]} is {chosen[clash[0]]!r}: it follows from the tokenizer and the recipe's top; "
            "take it out"
        )
    try:
        return config(**chosen, **fixed)
    except ValidationError as error:
        raise RecipeError("\n".join(describe_errors(error, prefix=f"{section}."))) from None


def load_recipe(name: str, folder: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe and applies overrides.

    Args:
        name: a recipe's name in ``folder``, or a path to a TOML file.
        folder: where named recipes are.
        overrides: values by dotted name, like ``{"student.optim.steps": 100}``; None values are left out.

    Raises:
        RecipeError: no such recipe, or wrong values: a line each with field, value and what is allowed.
    """
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in folder.glob("*.toml"))) or f"none in {folder}; set RECIPES_DIR"
        raise RecipeError(f"there is no recipe {name!r} ({path}); known: {known}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from None
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    asked = given.pop("student.objective", None)
    if isinstance(student := values.get("student"), dict):
        apply_objective(student, asked)
    for key, value in given.items():
        _set(values, key, value)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError("\n".join([f"recipe {path}:", *describe_errors(error)])) from None
    recipe = recipe.model_copy(update={"student": with_pretrained_sizes(recipe.student)})
    # Sizes that follow from the tokenizer stand in here: what can be wrong in a recipe's models is found before any
    # work.
    autoencoder = recipe.autoencoder_config(2**20, 1)
    check_widths(recipe.student, recipe.autoencoder, recipe.student_config(1, 0, autoencoder), autoencoder)
    return recipe


def parse_override(text: str) -> tuple[str, Any]:
    """Reads ``a.b=value``, the value as TOML or else as a string.

    Raises:
        RecipeError: there is no name or no ``=``.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise RecipeError(f"--set {text!r}: give a dotted name and a value, like student.optim.steps=100")
    try:
        return name, tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return name, value


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, field = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise RecipeError(f"{key}: {section} is a value, not a section")
    values[field] = value


def default_of(field: str) -> Any:
    """The default of a recipe's field by dotted name, as JSON has it; None where it has none."""
    *sections, name = field.split(".")
    model: type[BaseModel] = Recipe
    for section in sections:
        found = model.model_fields.get(section)
        kind = found.annotation if found else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return None
        model = kind
    found = model.model_fields.get(name)
    if found is None or found.is_required():
        return None
    return json.loads(json.dumps(found.get_default(call_default_factory=True), default=str))
