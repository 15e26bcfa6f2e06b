"""How a caller wants tokens drawn."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# Lower temperatures take the likeliest token, as vLLM's do: the quotients of a very low one are infinite.
LEAST_TEMPERATURE = 1e-5
# As OpenAI's.
_MOST_BIASES = 300


class SamplingParams(BaseModel):
    """How tokens are drawn; checked when made.

    They are applied in this order: logit_bias, repetition_penalty, presence_penalty and frequency_penalty, temperature,
    top_k, top_p, min_p. Each truncation looks at the probabilities that the one before it left, and likelier tokens
    go before others; of equally likely ones lower ids do.

    Attributes:
        temperature: divides the logits, below 1 all but the boosts of induction heads, see :class:`SteadyBoosts`; 0,
            and what is below LEAST_TEMPERATURE, takes the likeliest token.
        top_p: keeps the likeliest tokens whose mass reaches this share.
        top_k: keeps this many of the likeliest tokens; 0, or -1 as vLLM has it, keeps all.
        min_p: keeps tokens of at least this share of the likeliest token's probability.
        repetition_penalty: divides positive logits of ids that the prompt or the written text has, and multiplies
            negative ones (Keskar et al., arXiv 1909.05858); 1 changes nothing.
        presence_penalty: is taken from the logits of ids that were written; the prompt's do not count, as OpenAI's.
        frequency_penalty: is taken from the logits of ids that were written, once for each time.
        logit_bias: is added to the logits of these ids.
        seed: the same seed gives the same tokens; None draws a fresh one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1), AfterValidator(lambda k: max(k, 0))] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[
        dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]],
        Field(max_length=_MOST_BIASES),
    ] = {}
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < LEAST_TEMPERATURE

    @property
    def is_truncated(self) -> bool:
        """Whether some tokens are never drawn."""
        return bool(self.top_k) or self.top_p < 1 or self.min_p > 0

    @property
    def is_penalised(self) -> bool:
        """Whether it matters what was written before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
