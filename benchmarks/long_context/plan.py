"""How much is measured: which models, how many requests, how long contexts."""

from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.inference.plan import ModelSize
from latentforge.model.config import ChunkDecoderConfig, InductionConfig


class LongContextCell(NamedTuple):
    """So many requests at once, each behind so many tokens."""

    requests: int
    context: int

    @property
    def id(self) -> str:
        """Of its figures, such as ``kv_16x2k``."""
        long = f"{self.context // 1024}k" if self.context % 1024 == 0 else str(self.context)
        return f"kv_{self.requests}x{long}"


@dataclass(frozen=True)
class LongContextModel:
    """One of the models that are compared; all have the same backbone.

    Attributes:
        key: in results and behind their ids.
        name: in tables and the chart.
        chunk_size: tokens a step; 1 is the token-level twin.
        induction: of its induction heads; none by default.
        decoder: its chunk decoder.
    """

    key: str
    name: str
    chunk_size: int
    induction: InductionConfig | None = None
    decoder: ChunkDecoderConfig = field(default_factory=ChunkDecoderConfig)


TWIN = LongContextModel("twin", "token-level twin", 1)
K8 = LongContextModel("k8", "student, K = 8", 8)
MODELS = (
    TWIN,
    LongContextModel("k4", "student, K = 4", 4),
    K8,
    # As the shipped student has them: of every token they keep a key and a value, whatever K is.
    LongContextModel("k8_heads", "student, K = 8, induction heads", 8, InductionConfig(context=4)),
    # Keeps as much of every token as the twin, reads it at 2 of 12 layers, and at all of them once a step.
    LongContextModel(
        "k8_split", "split student, K = 8", 8, decoder=ChunkDecoderConfig(kind="split", num_layers=2, num_blocks=1)
    ),
)


_SIZE = ModelSize(layers=12, width=768, vocab_size=32_000)


@dataclass(frozen=True)
class LongContextPlan:
    """What every cell is made of.

    12 layers of width 768 and 32,000 ids, for what a step reads depends on the sizes in one proportion: that of a
    text's keys and values to the weights. Here a token takes 37 kB of cache beside 438 MB of weights, both in float32;
    Qwen3-0.6B in bfloat16 has 115 kB beside 1.2 GB, nearly the same. And 16 texts of 8k tokens fit 24 GiB, and are read
    by two cores in minutes.

    Attributes:
        repeats: figures of each model, of which the median counts.
        requests, contexts: every pair of them is a cell.
        new_tokens: of each text in one figure; a multiple of every K.
        trial_tokens: the same of a trial with another number of threads.
        size: of the backbone.
        read_bytes, product_size: what the device's speed is measured with: a block of memory that no processor's cache
            holds, and square matrices.
    """

    repeats: int = 5
    requests: tuple[int, ...] = (1, 16)
    contexts: tuple[int, ...] = (2048, 8192)
    new_tokens: int = 64
    trial_tokens: int = 32
    size: ModelSize = _SIZE
    read_bytes: int = 2**30
    product_size: int = 4096

    @property
    def cells(self) -> list[LongContextCell]:
        """The smallest first."""
        return [LongContextCell(requests, context) for context in self.contexts for requests in self.requests]

    def room(self, num_threads: int) -> int:
        """Tokens that a text may be continued by: the step behind its prompt, trials, figures, and one step to spare.

        A text that was full would end within the last figure.
        """
        trials = 1 + num_threads if num_threads > 1 else 1
        longest = max(model.chunk_size for model in MODELS)
        return 2 * longest + trials * self.trial_tokens + self.repeats * self.new_tokens


# A look whether everything works: seconds, and no figure worth knowing.
QUICK = LongContextPlan(
    repeats=1,
    requests=(1, 2),
    contexts=(64, 128),
    new_tokens=8,
    trial_tokens=8,
    size=ModelSize(layers=3, width=128, vocab_size=256),
    read_bytes=2**22,
    product_size=128,
)
# Of a GPU there is enough for more.
REQUESTS_ON_CUDA = (1, 16, 64)
