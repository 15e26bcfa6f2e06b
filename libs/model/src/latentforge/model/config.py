"""What an autoencoder and a student are made of, checked when made.

Every impossible combination is a ValueError (pydantic's ValidationError is one) that names the field, its value and
what to set.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# The others change with the length of a text, which incremental decoding does not know.
ROPE_SCALINGS = ("linear", "llama3", "yarn")


#: auto: bfloat16 on CUDA, float32 elsewhere. fast: bfloat16 wherever the device has units for it.
MuonDtype = Literal["auto", "fast", "float32", "bfloat16"]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AutoencoderConfig(_Config):
    """Sizes of the autoencoder and the constants of its loss.

    Attributes:
        vocab_size: ids of the tokenizer, V.
        chunk_size: tokens in a chunk, K.
        latent_size: dimensions of a latent, D.
        hidden_size: width of a token inside the autoencoder.
        chunk_hidden_size: width of a whole chunk between the tokens and the latent.
        intermediate_size: inner width of the SwiGLU blocks.
        pad_id: id that fills the first chunk of a sequence on the left.
        token_dropout: share of input tokens replaced by the mask embedding in training.
        latent_dropout: share of latent dimensions set to 0 in training.
        kl_weight: weight of the KL term beside K times the cross-entropy.
        kl_floor: nats per dimension below which the KL is not pushed further (keeps dimensions from collapsing).
        log_std_init: log standard deviation of the posterior before training.
        equal_codes: whether every token starts with a code of the same length in the latent, so that all of them come
            back before training; latent_size and chunk_hidden_size are multiples of K then.
    """

    vocab_size: int = Field(ge=2)
    chunk_size: int = Field(default=8, ge=1)
    latent_size: int = Field(default=256, ge=1)
    hidden_size: int = Field(default=256, ge=1)
    chunk_hidden_size: int = Field(default=512, ge=1)
    intermediate_size: int = Field(default=512, ge=1)
    pad_id: int = Field(ge=0)
    token_dropout: float = Field(default=0.15, ge=0, lt=1)
    latent_dropout: float = Field(default=0.15, ge=0, lt=1)
    kl_weight: float = Field(default=1e-3, ge=0)
    kl_floor: float = Field(default=0.5, ge=0)
    log_std_init: float = Field(default=-2.0, ge=-10, le=2)
    equal_codes: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_id("pad_id", self.pad_id, self.vocab_size)
        for name in ("latent_size", "chunk_hidden_size") if self.equal_codes else ():
            if (size := getattr(self, name)) % self.chunk_size:
                raise ValueError(
                    f"{name}={size} with equal_codes=true is not a multiple of chunk_size={self.chunk_size}; set it to "
                    f"{-(-size // self.chunk_size) * self.chunk_size} or equal_codes to false"
                )
        return self


class ChunkDecoderConfig(_Config):
    """The causal decoder inside a chunk.

    Attributes:
        kind: a GRU or a small causal transformer, which start anew at each chunk; recurrent, a GRU that is carried over
            the whole text and steered by the backbone; split, the backbone's own last layers at every token, where a
            GRU stands in for what its first ones would make of the chunk's tokens; or none: then the tokens of a chunk
            do not know each other.
        width: size of its state; with split, of the GRU's.
        rank: rank of the correction that it adds to the logits.
        frequent_ids: of how many ids it corrects the logits, those that stand most often in the training data; None
            takes all.
        window: previous chunks whose tokens it reads before this chunk's; a recurrent one reads all of them.
        num_layers: of the GRU or the transformer; with split, how many of the backbone's layers run at every token.
        num_heads: of the transformer.
        num_blocks: SwiGLU blocks behind the steered state of a recurrent one, or of what stands in with split.
    """

    kind: Literal["gru", "transformer", "recurrent", "split", "none"] = "gru"
    width: int = Field(default=256, ge=1)
    rank: int = Field(default=128, ge=1)
    frequent_ids: int | None = Field(default=None, ge=1)
    window: int = Field(default=1, ge=0)
    num_layers: int = Field(default=1, ge=1)
    num_heads: int = Field(default=4, ge=1)
    num_blocks: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "transformer" and self.width % self.num_heads:
            raise ValueError(
                f"width={self.width} is not a multiple of num_heads={self.num_heads}; "
                "set num_heads to a divisor of width"
            )
        return self


class LogitFeaturesConfig(_Config):
    """What the logits that the chunk decoder corrects are a linear map of: K vectors of features for each chunk.

    Attributes:
        kind: the autoencoder's frozen decoder applied to the latent; or a plain linear map from the hidden state, which
            needs no latent, to the autoencoder's frozen token embeddings (``embeddings``) or to an output table of its
            own (``linear``); or nothing (``none``): logits are then the chunk decoder's, the bias and what induction
            heads add.
        width: of the features of a linear map; the autoencoder's ``hidden_size`` for ``embeddings``. The kind
            ``autoencoder`` has that whatever stands here, and ``none`` has none.
    """

    kind: Literal["autoencoder", "embeddings", "linear", "none"] = "autoencoder"
    width: int = Field(default=64, ge=1)


class InductionConfig(_Config):
    """The attention that looks up where the last tokens stood before.

    Attributes:
        context: how many last tokens it goes by; 0 leaves the head out.
        num_heads: that look side by side.
        size: of the keys and values of each.
    """

    context: int = Field(default=0, ge=0)
    num_heads: int = Field(default=2, ge=1)
    size: int = Field(default=64, ge=1)


class BackboneConfig(_Config):
    """Sizes of a transformer that writes texts, and the ids that it must know.

    Attributes:
        vocab_size: ids of the tokenizer, V.
        pad_id: id that fills the first chunk of a sequence on the left; never written.
        eos_id: id that ends a text.
        hidden_size: width of the backbone.
        num_layers, num_heads, num_kv_heads, head_dim, intermediate_size: as in Qwen3 and Llama.
        qk_norm: whether every head's queries and keys are normalised, as Qwen3's; a Llama's are not.
        norm_eps: of the RMS norms of the layers.
        rope_theta: base of the rotary position embedding.
        rope_scaling: how its frequencies are stretched, as transformers has it in ``rope_parameters``: ``rope_type``
            (linear, llama3 or yarn) and that type's numbers; None does not stretch them.
        induction: what stands beside the backbone and looks up where the last tokens stood before.
    """

    vocab_size: int = Field(ge=2)
    pad_id: int = Field(ge=0)
    eos_id: int = Field(ge=0)
    hidden_size: int = Field(ge=1)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    intermediate_size: int = Field(ge=1)
    qk_norm: bool = True
    norm_eps: float = Field(default=1e-6, gt=0, lt=1)
    rope_theta: float = Field(default=10_000.0, gt=0)
    rope_scaling: dict[str, str | int | float | bool] | None = None
    induction: InductionConfig = InductionConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_id("pad_id", self.pad_id, self.vocab_size)
        _check_id("eos_id", self.eos_id, self.vocab_size)
        if self.pad_id == self.eos_id:
            raise ValueError(
                f"pad_id and eos_id are both {self.pad_id}: pads are never written, so texts would not end; "
                "give the tokenizer a pad id of its own"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
                "set num_kv_heads to a divisor of num_heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd, but rotary embeddings turn pairs; set an even head_dim")
        kind = None if self.rope_scaling is None else self.rope_scaling.get("rope_type")
        if self.rope_scaling is not None and kind not in ROPE_SCALINGS:
            raise ValueError(
                f"rope_scaling.rope_type={kind!r} is none of {', '.join(ROPE_SCALINGS)}; set one, or leave "
                "rope_scaling out"
            )
        return self


class TokenLevelConfig(BackboneConfig):
    """Sizes of a token-level student.

    Attributes:
        max_tokens: positions of the backbone, one per token.
        embed_size: width of the token embeddings, which a linear map takes to the backbone's; None takes the
            backbone's, without a map.
        output_rank: width of the output table, to which a linear map takes the hidden states; None takes the
            backbone's, without a map.
    """

    max_tokens: int = Field(ge=2)
    embed_size: int | None = Field(default=None, ge=1)
    output_rank: int | None = Field(default=None, ge=1)

    @property
    def embed_width(self) -> int:
        """``embed_size``, or what stands for None."""
        return self.embed_size or self.hidden_size

    @property
    def output_width(self) -> int:
        """``output_rank``, or what stands for None."""
        return self.output_rank or self.hidden_size


class StudentConfig(BackboneConfig):
    """Sizes of the student.

    Attributes:
        num_layers: of the backbone; with 0 there is none, and every hidden state is one learnt constant: the control
            that says what a backbone is worth.
        chunk_size: tokens in a chunk, K.
        latent_size: dimensions of a latent, D.
        embed_size: width of the student's own token embeddings; K of them, side by side, enter a step.
        positions: what the backbone has a position of: chunks; or tokens, K of which a step reads in one pass. Tokens
            are what pretrained layers know, and read weights and cache as seldom as chunks; the cache is as large as a
            token-level model's.
        max_chunks: of a text, the longest.
        head: how a latent is made from the backbone's hidden state.
        energy_noise_size: uniform noise dimensions of the energy head.
        energy_blocks: gated residual blocks of the energy head.
        chunk_decoder: the causal decoder inside a chunk.
        logit_features: what the logits that it corrects are made of.
    """

    num_layers: int = Field(ge=0)
    chunk_size: int = Field(ge=1)
    latent_size: int = Field(ge=1)
    embed_size: int = Field(default=64, ge=1)
    positions: Literal["chunks", "tokens"] = "chunks"
    max_chunks: int = Field(ge=2)
    head: Literal["deterministic", "energy"] = "deterministic"
    energy_noise_size: int = Field(default=64, ge=1)
    energy_blocks: int = Field(default=4, ge=1)
    chunk_decoder: ChunkDecoderConfig = ChunkDecoderConfig()
    logit_features: LogitFeaturesConfig = LogitFeaturesConfig()

    @property
    def max_positions(self) -> int:
        """Of the backbone."""
        return self.max_chunks * (self.chunk_size if self.positions == "tokens" else 1)

    @model_validator(mode="after")
    def _check_frequent_ids(self) -> Self:
        frequent = self.chunk_decoder.frequent_ids
        if frequent is not None and frequent > self.vocab_size:
            raise ValueError(
                f"chunk_decoder.frequent_ids={frequent} is more than vocab_size={self.vocab_size}; "
                "set it to fewer, or leave it out to take all"
            )
        return self

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if self.chunk_decoder.kind != "none":
            return self
        if self.logit_features.kind == "none":
            raise ValueError(
                "logit_features.kind='none' with chunk_decoder.kind='none': nothing would make logits but the bias; "
                "take a decoder, or other features"
            )
        if not self.num_layers:
            raise ValueError(
                "num_layers=0 with chunk_decoder.kind='none': nothing would read the text; take a decoder, or set "
                "num_layers to at least 1"
            )
        return self

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        if self.chunk_decoder.kind != "split":
            return self
        wanted = {"positions": "tokens", "logit_features.kind": "none"}
        found = {"positions": self.positions, "logit_features.kind": self.logit_features.kind}
        for name, value in wanted.items():
            if found[name] != value:
                raise ValueError(
                    f"chunk_decoder.kind='split' with {name}={found[name]!r}: its logits are made of the backbone's "
                    f"states of tokens; set {name} to {value!r}"
                )
        last = self.chunk_decoder.num_layers
        if last >= self.num_layers:
            raise ValueError(
                f"chunk_decoder.num_layers={last} of num_layers={self.num_layers}: with kind='split' the rest run once "
                "a chunk; set chunk_decoder.num_layers to fewer than num_layers"
            )
        if self.chunk_size == 1:
            raise ValueError("chunk_decoder.kind='split' with chunk_size=1: every layer runs at every token; set more")
        return self

    @model_validator(mode="after")
    def _check_induction(self) -> Self:
        if self.induction.context and self.chunk_decoder.kind == "none":
            raise ValueError(
                f"induction.context={self.induction.context} with chunk_decoder.kind='none': the head reads the "
                "tokens of a chunk, which do not know each other then; set induction.context to 0, or take a decoder"
            )
        return self


def _check_id(field: str, value: int, vocab_size: int) -> None:
    if value >= vocab_size:
        raise ValueError(f"{field}={value} is not in the vocabulary of {vocab_size} ids; set it to 0..{vocab_size - 1}")
