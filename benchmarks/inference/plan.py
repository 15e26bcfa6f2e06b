"""How much is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """A student's sizes; heads have 64 dimensions, half as many of them are keys' and values'."""

    layers: int
    width: int
    vocab_size: int
    chunk_size: int = 8


@dataclass(frozen=True)
class InferencePlan:
    """What every measurement is made of.

    Attributes:
        repeats: figures of each side, of which the median counts.
        clients: that ask a server at the same time.
        prompt_tokens, new_tokens: of a request.
        window: seconds that a server is asked for each figure.
        large: the model with random weights that is decoded in this process.
        sampling_vocab: ids of the model that top_p is measured with.
        swaps: checkpoints published in one figure of swap_p99.
        flooding, half_open: hostile clients that post large prompts, and bodies that are sent by half.
        steps: of a figure of step_over_floor.
    """

    repeats: int = 5
    clients: int = 16
    prompt_tokens: int = 64
    new_tokens: int = 128
    window: float = 5.0
    large: ModelSize = ModelSize(layers=12, width=768, vocab_size=32_000)
    sampling_vocab: int = 32_768
    swaps: int = 20
    flooding: int = 8
    half_open: int = 400
    steps: int = 200


# A look whether everything works: seconds each, and no figure worth knowing.
QUICK = InferencePlan(
    repeats=1,
    clients=4,
    prompt_tokens=16,
    new_tokens=16,
    window=0.5,
    large=ModelSize(layers=2, width=128, vocab_size=2048),
    sampling_vocab=4096,
    swaps=2,
    flooding=2,
    half_open=10,
    steps=5,
)
