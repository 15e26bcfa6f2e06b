"""Recipes: everything that a run's result depends on, from TOML, checked before any work starts."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from latentforge.core.errors import describe_errors
from latentforge.model.config import AutoencoderConfig, BackboneConfig, StudentConfig, TokenLevelConfig
from latentforge.teacher_client.sparse_rows import LogprobDtype
from latentforge.trainer.config.objectives import DEFAULT_OBJECTIVE, OBJECTIVES, apply_objective
from latentforge.trainer.errors import RecipeError

PositiveInt = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
C = TypeVar("C", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataRecipe(_Section):
    """How text becomes sequences.

    Attributes:
        sequence_length: tokens per sequence, a multiple of K.
        eos_id, pad_id: None takes the tokenizer's own.
    """

    sequence_length: PositiveInt = 2048
    eos_id: Annotated[int, Field(ge=0)] | None = None
    pad_id: Annotated[int, Field(ge=0)] | None = None


class OptimRecipe(_Section):
    """Optimizer and schedule.

    Attributes:
        steps: optimizer steps.
        batch_size: chunks per step for the autoencoder, sequences per step for the student.
        lr: peak learning rate of Muon and AdamW.
        weight_decay: for the matrices.
        warmup_steps: steps over which the rate rises to its peak.
        decay: how the rate falls to 0.
        decay_from: share of the steps after which it begins to fall.
        clip_norm: the gradient's norm is cut to this.
    """

    steps: PositiveInt
    batch_size: PositiveInt
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    decay: Literal["linear", "cosine"] = "linear"
    decay_from: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 1.0


class AutoencoderRecipe(_Section):
    """The autoencoder and its training.

    Attributes:
        model: fields of AutoencoderConfig besides vocab_size, chunk_size and pad_id.
        optim: optimizer and schedule.
        random_share: share of a batch's chunks that are uniformly random ids, so that rare tokens are learnt too.
        pad_share: share of a batch's chunks that are padded on the left, like a text's first chunk.
        text_tokens: of the training text, how many tokens it learns from: the sequences that a student of the same seed
            reads first. So many as the student learns from, and the two together have seen no more text than it has;
            None takes all.
        validate_every, save_every: steps between validations and saves.
        validation_chunks: held-out chunks of a validation during the run; the last one takes all.
    """

    model: dict[str, Any] = {}
    optim: OptimRecipe
    random_share: Share = 0.1
    pad_share: Share = 0.02
    text_tokens: PositiveInt | None = None
    validate_every: PositiveInt = 200
    save_every: PositiveInt = 200
    validation_chunks: PositiveInt = 1024


class WeightsRecipe(_Section):
    """Weights of the student's loss terms; the objective decides those that are not set."""

    ce: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    kd: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    mse: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    energy: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class OnPolicyRecipe(_Section):
    """Steps that learn the teacher's rows on text which the student has just written itself, and nothing else of it.

    Attributes:
        share: of the steps; the others learn the data as ever.
        begin: share of the steps before which there are none: a student that cannot write yet has little to show.
        prompt_tokens: of the training text that it goes on from.
        max_tokens: that it writes.
        temperature: that it writes with.
    """

    share: Share = 0.0
    begin: Annotated[float, Field(ge=0, lt=1)] = 0.5
    prompt_tokens: PositiveInt = 64
    max_tokens: PositiveInt = 192
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0


class StudentRecipe(_Section):
    """The student and its training.

    Attributes:
        objective: what it learns from (see objectives.py); decides weights, head and logit features where those are
            not set.
        model: fields of StudentConfig besides vocab_size, chunk_size, latent_size, pad_id and eos_id.
        optim: optimizer and schedule.
        weights: weights of the loss terms.
        on_policy: steps on the student's own text.
        init_backbone: a folder with a token-level student, or a Qwen3 model of transformers, whose backbone it starts
            from; its sizes must be the same.
        phase_probability: share of sequences whose first chunk is left-padded by 1 … K−1 pads.
        validate_every, save_every: steps between validations and saves.
        validation_sequences: held-out sequences of a validation.
        num_publishes: checkpoints published over the run, the first one early.
        publish_every: steps between checkpoints instead; None follows num_publishes.
        golden_prompt, golden_tokens: the greedy continuation that a checkpoint's manifest carries.
    """

    objective: str = DEFAULT_OBJECTIVE
    model: dict[str, Any]
    optim: OptimRecipe
    weights: WeightsRecipe = WeightsRecipe()
    on_policy: OnPolicyRecipe = OnPolicyRecipe()
    init_backbone: Path | None = None
    phase_probability: Share = 0.5
    validate_every: PositiveInt = 50
    save_every: PositiveInt = 50
    validation_sequences: PositiveInt = 8
    num_publishes: Annotated[int, Field(ge=3)] = 5
    publish_every: PositiveInt | None = None
    golden_prompt: str = "def main(argv=None):\n"
    golden_tokens: PositiveInt = 32


class GenerateRecipe(_Section):
    """What the teacher is asked to write, where its own text is what the student learns from.

    Attributes:
        prompts, held_out_prompts: how many are chosen from the training and from the held-out documents.
        n: continuations per prompt.
        max_tokens: most tokens of a continuation.
        temperature, top_p: of the teacher's sampling; 1 and 1 draw from its distribution, which the rows describe.
        prompt_tokens: of a document that is text, its first so many tokens are in the prompt.
        instruction: stands before those.
        seed: of the choice of prompts and of the sampling.
    """

    prompts: PositiveInt = 1000
    held_out_prompts: PositiveInt = 50
    n: Annotated[int, Field(ge=1, le=64)] = 1
    max_tokens: PositiveInt = 256
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    prompt_tokens: PositiveInt = 128
    instruction: str = "Continue the following text. Answer with its continuation alone."
    seed: Annotated[int, Field(ge=0)] = 0


class TeacherRecipe(_Section):
    """What is asked of the teacher.

    Attributes:
        targets: score: its rows on the data; generate: its own text and its rows on that; auto: score where the
            teacher can; text: the data alone, no teacher.
        top_k: entries per row.
        logprob_dtype: how logprobs travel, and are stored.
        generate: what generate asks for.
    """

    targets: Literal["auto", "score", "generate", "text"] = "auto"
    top_k: PositiveInt = 20
    logprob_dtype: LogprobDtype = "float16"
    generate: GenerateRecipe = GenerateRecipe()


class Recipe(_Section):
    """One run.

    Attributes:
        name: names the run unless --run does.
        seed: of weights, order and noise.
        chunk_size: K.
        vocab_size: ids of the models; None takes the tokenizer's. Must cover the teacher's output layer.
        device: auto takes CUDA where there is one.
        precision: of the forward pass; weights and optimizer state stay float32.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0)] = 0
    chunk_size: PositiveInt = 8
    vocab_size: PositiveInt | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    data: DataRecipe = DataRecipe()
    teacher: TeacherRecipe = TeacherRecipe()
    autoencoder: AutoencoderRecipe
    student: StudentRecipe

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
                "a chunk decoder; set kind to 'gru' or 'transformer', or choose the objective regressed-latent"
            )
        weights, head = self.student.weights, self.student.model.get("head", "deterministic")
        if weights.energy and head != "energy":
            raise ValueError(
                f"student.weights.energy={weights.energy} needs student.model.head='energy', which is {head!r}"
            )
        if self.teacher.targets == "text" and weights.kd:
            raise ValueError(
                f"student.weights.kd={weights.kd} with teacher.targets='text': without a teacher there is nothing to "
                "distil; set the weight to 0, or choose the objective chunk-ce"
            )
        if not any(weights.model_dump().values()):
            raise ValueError("student.weights are all 0; give at least one term a weight")
        self._check_on_policy()
        return self

    def _check_on_policy(self) -> None:
        on_policy = self.student.on_policy
        if not on_policy.share:
            return
        asked = f"student.on_policy.share={on_policy.share}"
        if not self.student.weights.kd:
            raise ValueError(
                f"{asked} with student.weights.kd=0: all that a student's own text teaches is the teacher's rows; set "
                "the weight above 0, or share to 0"
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
        return _build(
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

    def token_level_config(self, vocab_size: int, pad_id: int, eos_id: int) -> TokenLevelConfig:
        """Of a token-level student with the student's backbone."""
        sizes = {name: value for name, value in self.student.model.items() if name in BackboneConfig.model_fields}
        ids = {"vocab_size": self.vocab_size or vocab_size, "pad_id": pad_id, "eos_id": eos_id}
        return _build(TokenLevelConfig, "student.model", sizes, ids | {"max_tokens": self.data.sequence_length})


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
    # Sizes that follow from the tokenizer stand in here: what can be wrong in a recipe's models is found before any
    # work.
    recipe.student_config(1, 0, recipe.autoencoder_config(2**20, 1))
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
