"""The sections of a recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from latentforge.core.manifest import MOST_SAMPLES
from latentforge.model.config import MuonDtype
from latentforge.teacher_client.sparse_rows import LogprobDtype
from latentforge.trainer.config.objectives import DEFAULT_OBJECTIVE

# As latentforge.model.initialisation has them, which brings torch along.
InitPart = Literal["layers", "inputs", "outputs"]
# Nothing is none: --set student.init_from= takes out what a recipe has.
Pretrained = Annotated[str | None, BeforeValidator(lambda place: place or None)]
GroupName = Literal["layers", "inputs", "chunks", "outputs", "rest"]


class Section(BaseModel):
    """A part of a recipe; a field that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataRecipe(Section):
    """How text becomes sequences."""

    sequence_length: int = Field(2048, ge=1, description="Tokens per sequence, a multiple of K.")
    eos_id: int | None = Field(None, ge=0, description="Ends a text; unset takes the tokenizer's own.")
    pad_id: int | None = Field(None, ge=0, description="Fills what is no text; unset takes the tokenizer's own.")
    bos: bool | None = Field(
        None, description="Whether every sequence begins with the tokenizer's bos; unset does as the tokenizer does."
    )
    text_column: str | None = Field(None, description="What holds a document's text; unset takes text or messages.")
    mask_documents: bool = Field(
        False,
        description="Whether documents that share a sequence are hidden from one another, for teacher and student: "
        "each is a text of its own then. false: they attend across their borders.",
    )
    skip_bad: bool = Field(False, description="Leaves lines that are no documents out, and counts them.")


class GroupRecipe(Section):
    """How a group of parameters learns."""

    rate: float = Field(1.0, ge=0, allow_inf_nan=False, description="Its learning rate, as a share of lr; 0: never.")
    frozen_steps: int = Field(
        0, ge=0, description="Steps before it begins to learn; its rate then rises over warmup_steps."
    )
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="Of its matrices; what was trained by AdamW is trained on by it at less cost."
    )


class OptimRecipe(Section):
    """Optimizer and schedule."""

    steps: int = Field(ge=1, description="Optimizer steps.")
    batch_size: int = Field(ge=1, description="Chunks per step of the autoencoder, sequences per step of the student.")
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        description="Parts that a step's batch is computed in, one after another, each on every device: memory of one, "
        "the gradient of all.",
    )
    lr: float = Field(gt=0, allow_inf_nan=False, description="Peak learning rate of Muon and AdamW.")
    weight_decay: float = Field(0.0, ge=0, description="Of the matrices.")
    warmup_steps: int = Field(20, ge=0, description="Steps over which the rate rises to its peak.")
    decay: Literal["linear", "cosine"] = Field("linear", description="How the rate falls to 0.")
    decay_from: float = Field(0.0, ge=0, lt=1, description="Share of the steps after which it begins to fall.")
    clip_norm: float = Field(1.0, gt=0, description="The gradient's norm is cut to this.")
    muon_dtype: MuonDtype = Field(
        "auto",
        description="What Muon orthogonalises in. auto: bfloat16 on CUDA, float32 elsewhere; fast: bfloat16 wherever "
        "the device has units for it. A CPU that has them takes less than half as long, one without them several times "
        "as long.",
    )
    muon_split: bool = Field(
        False, description="Whether Muon takes a GRU's gates, and fused queries, keys and values, apart."
    )
    groups: dict[GroupName, GroupRecipe] = Field(
        {},
        description="How groups learn: layers (the transformer), inputs (the token embeddings), chunks (from K "
        "embeddings to a step's input), outputs (output tables and the map of linear logit features), rest.",
    )

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if self.gradient_accumulation_steps > self.batch_size:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} is more than "
                f"batch_size={self.batch_size}: there is nothing smaller than one of the batch; lower it"
            )
        return self


class LastingRecipe(Section):
    """What a stage does about a loss that breaks down (see training/rewinds.py), and how many states it keeps."""

    keep_states: int = Field(2, ge=1, description="Newest saved states that are kept, should one be damaged.")
    spike: float | None = Field(
        None,
        gt=1,
        description="A loss of more than so many times the median of the 100 before it is no loss to learn from; "
        "unset, only one that is not finite.",
    )
    max_rewinds: int = Field(
        3,
        ge=0,
        description="How often such a loss makes the run go back to its last regular state, and past the data since.",
    )


class AutoencoderRecipe(LastingRecipe):
    """The autoencoder and its training."""

    model: dict[str, Any] = Field({}, description="Fields of AutoencoderConfig besides vocab_size, chunk_size, pad_id.")
    optim: OptimRecipe = Field(description="Optimizer and schedule.")
    random_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of a batch's chunks that are uniformly random ids, so that rare tokens are learnt too.",
    )
    pad_share: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Share of a batch's chunks that are padded on the left, like a text's first chunk.",
    )
    init_from: Pretrained = Field(
        None,
        description="A pretrained model, as student.init_from, of whose token embeddings the first principal "
        "components are its table to begin with.",
    )
    text_tokens: int | None = Field(
        None,
        ge=1,
        description="Of the training text, how many tokens it learns from: the sequences that a student of the same "
        "seed reads first. So many as the student learns from, and the two together have seen no more text than it "
        "has; unset takes all.",
    )
    validate_every: int = Field(200, ge=1, description="Steps between validations.")
    save_every: int = Field(200, ge=1, description="Steps between saves.")
    validation_chunks: int = Field(
        1024, ge=1, description="Held-out chunks of a validation during the run; the last one takes all."
    )


class WeightsRecipe(Section):
    """Weights of the student's loss terms; the objective decides those that are not set."""

    ce: float = Field(1.0, ge=0, allow_inf_nan=False, description="Of the cross-entropy.")
    kd: float = Field(1.0, ge=0, allow_inf_nan=False, description="Of KL(teacher ‖ student).")
    tv: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Of the total variation: 1 - TV is a draft's acceptance."
    )
    reverse_kl: float = Field(0.0, ge=0, allow_inf_nan=False, description="Of KL(student ‖ teacher).")
    mse: float = Field(0.0, ge=0, allow_inf_nan=False, description="Of the latents' squared error.")
    energy: float = Field(0.0, ge=0, allow_inf_nan=False, description="Of the energy score.")


class OnPolicyRecipe(Section):
    """Steps that learn the teacher's rows on text which the student has just written itself, and nothing else of it."""

    share: float = Field(0.0, ge=0, le=1, description="Of the steps; the others learn the data as ever.")
    begin: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of the steps before which there are none: who cannot write yet has little to show.",
    )
    prompt_tokens: int = Field(64, ge=1, description="Tokens of training text that the student continues.")
    max_tokens: int = Field(192, ge=1, description="Tokens that it writes.")
    temperature: float = Field(1.0, gt=0, le=100, description="That it writes with.")


class TokenLevelRecipe(Section):
    """What a token-level student has besides the student's backbone and induction heads."""

    embed_size: int | None = Field(
        None, ge=1, description="Width of its token embeddings, which a linear map widens; unset is the backbone's."
    )
    output_rank: int | None = Field(
        None,
        ge=1,
        description="Width of its output table, behind a linear map of the hidden state: a cheaper output layer, as a "
        "student's corrections have it; unset is the backbone's.",
    )


class StudentRecipe(LastingRecipe):
    """The student and its training."""

    objective: str = Field(
        DEFAULT_OBJECTIVE,
        description="What it learns from (see objectives.py); decides weights, head and logit features that are not "
        "set.",
    )
    model: dict[str, Any] = Field(
        description="Fields of StudentConfig besides vocab_size, chunk_size, latent_size, pad_id and eos_id."
    )
    token_level: TokenLevelRecipe = Field(
        TokenLevelRecipe(), description="Of the token-level student of the same backbone (train token-level)."
    )
    optim: OptimRecipe = Field(description="Optimizer and schedule.")
    weights: WeightsRecipe = Field(WeightsRecipe(), description="Weights of the loss terms.")
    on_policy: OnPolicyRecipe = Field(OnPolicyRecipe(), description="Steps on text that the student writes itself.")
    init_from: Pretrained = Field(
        None,
        description="A pretrained model that it starts from: the folder or the hub id of a Qwen3 or Llama, or a "
        "token-level student's folder. Sizes of its layers that the model leaves out are taken from it.",
    )
    init_checkpoint: Path | None = Field(
        None,
        description="A published checkpoint's folder, checkpoints/RUN/step-00001200, whose autoencoder and student the "
        "run goes on from, with a schedule of its own.",
    )
    init_parts: list[InitPart] | None = Field(
        None,
        min_length=1,
        description="What is taken over: layers, inputs (the token embeddings) and outputs (the output tables; of "
        "narrower tables the first principal components); unset takes all.",
    )
    init_layers: list[Annotated[int, Field(ge=0)]] | None = Field(
        None,
        min_length=1,
        description="Numbers of the layers that are taken over, from 0, ascending: a smaller student of them; unset "
        "takes all.",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average of the weights, like 0.999: what is validated and "
        "published in place of the last step's; unset keeps none.",
    )
    activation_checkpointing: bool = Field(
        False, description="Whether the backbone's activations are made anew in the backward pass, not kept."
    )
    compile: bool = Field(
        False,
        description="Whether the backbone's layers go through torch.compile: a minute at the first steps of every "
        "process, then fewer passes over memory.",
    )
    phase_probability: float = Field(
        0.5, ge=0, le=1, description="Share of sequences whose first chunk is left-padded by 1 to K-1 pads."
    )
    validate_every: int = Field(50, ge=1, description="Steps between validations.")
    save_every: int = Field(50, ge=1, description="Steps between saves.")
    keep_checkpoints: int | None = Field(
        None,
        ge=1,
        description="Newest checkpoints that are kept; besides them the best, the pinned one and those that a server "
        "has on lease. Unset keeps all.",
    )
    validation_sequences: int = Field(8, ge=1, description="Held-out sequences of a validation.")
    num_publishes: int = Field(5, ge=3, description="Checkpoints published over the run, the first one early.")
    publish_every: int | None = Field(
        None, ge=1, description="Steps between checkpoints instead; unset follows num_publishes."
    )
    golden_tokens: int = Field(
        256,
        ge=1,
        description="Most tokens of the held-out text whose log probabilities are in a checkpoint's manifest.",
    )
    samples: int = Field(
        2, ge=0, le=MOST_SAMPLES, description="Texts that the student writes at every publish, for people to read."
    )
    sample_prompts: list[str] | None = Field(
        None, description="What those continue; unset takes the beginnings of held-out sequences."
    )
    sample_tokens: int = Field(32, ge=1, le=256, description="Most tokens of a sample.")

    @property
    def parts(self) -> Sequence[InitPart]:
        """What it takes over from ``init_from``."""
        return get_args(InitPart) if self.init_parts is None else self.init_parts


class GenerateRecipe(Section):
    """What the teacher is asked to write, where the student learns from generated text."""

    prompts: int = Field(1000, ge=1, description="How many are chosen from the training documents.")
    held_out_prompts: int = Field(50, ge=1, description="How many are chosen from the held-out documents.")
    n: int = Field(1, ge=1, le=64, description="Continuations per prompt.")
    max_tokens: int = Field(256, ge=1, description="Most tokens of a continuation.")
    temperature: float = Field(
        1.0, ge=0, le=100, description="Of the teacher's sampling; 1 draws from the distribution that rows describe."
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Of the teacher's sampling; 1 draws from the whole distribution.")
    greedy_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Of the prompts, to how many the teacher writes what it finds likeliest, once, instead of n times "
        "what it draws: text that a drafter meets where temperature is 0.",
    )
    text_prompts: Literal["asked", "continued"] = Field(
        "asked",
        description="What a document that is text becomes: asked, a user's message with the instruction before it; "
        "continued, a text that goes on, without a chat template.",
    )
    prompt_tokens: int = Field(128, ge=1, description="Of a document that is text, so many tokens are in the prompt.")
    instruction: str = Field(
        "Continue the following text. Answer with its continuation alone.", description="Stands before those."
    )
    seed: int = Field(0, ge=0, description="Of the choice of prompts and of the sampling.")


class TeacherRecipe(Section):
    """What is asked of the teacher."""

    targets: Literal["auto", "score", "generate", "text"] = Field(
        "auto",
        description="score: its rows on the data; generate: text that it writes, and its rows on that; auto: score "
        "where the teacher can; text: the data alone, no teacher.",
    )
    top_k: int = Field(20, ge=1, description="Entries per row.")
    logprob_dtype: LogprobDtype = Field("float16", description="How logprobs travel, and are stored.")
    share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Of the training sequences, how many the teacher is asked about: the others teach without its "
        "rows, by cross-entropy. A sequence's content decides, so that all epochs and runs ask about the same ones.",
    )
    targets_from: list[Path] = Field(
        [],
        description="Folders of kept rows (`trainer score`) that are read in place of a gateway; a sequence that none "
        "of them holds is trained without rows.",
    )
    max_failed_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Sequences that the teacher fails on for good are trained without its rows; a larger share of "
        "them ends the run.",
    )
    generate: GenerateRecipe = Field(GenerateRecipe(), description="What generate asks for.")

    @field_validator("targets_from", mode="before")
    @classmethod
    def _one_folder(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value

    def identity(self) -> dict[str, Any]:
        """What of it a result depends on; a value that no run had before stands in it only where it is another.

        Where kept rows lie does not count: what they are stands in the source's own identity.
        """
        exclude = {"max_failed_share", "targets_from"} | ({"share"} if self.share == 1.0 else set())
        return self.model_dump(exclude=exclude | ({"generate"} if self.targets == "score" else set()))
