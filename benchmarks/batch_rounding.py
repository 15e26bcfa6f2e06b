"""How often a text's token is another one in company than alone, because products of other sizes round otherwise.

Usage: python -m benchmarks.batch_rounding [--temperature 1] [--tokens 200000] [--at-once 16] [--seed 0]

Random prompts of 1 to 200 ids are continued with the shipped student, at random seeds, --at-once together and each
alone; a text is compared up to its first difference. With INFERENCE_EXACT no token differs (tests/decoding in
libs/model). Exit code 0 whatever the figures.
"""

import argparse
import random
import shlex
import sys
from pathlib import Path

import torch

from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.results import Result, ResultsFile, cpu_description
from latentforge.model.decoding.batch import BatchDecoding
from latentforge.model.decoding.build import batch_decoding
from latentforge.model.io import load_autoencoder, load_student
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams

_SHIPPED = Path("models/stdlib-student")
_STEPS = 40
_LONGEST_PROMPT = 200


def _write(decoding: BatchDecoding, prompts: list[list[int]], params: list[SamplingParams]) -> list[list[int]]:
    texts = [decoding.open(prompt, some) for prompt, some in zip(prompts, params, strict=True)]
    while decoding.prefill(texts, decoding.max_tokens):
        pass
    written: list[list[int]] = [[] for _ in texts]
    for _ in range(_STEPS):
        for ids, chunk in zip(written, decoding.step(texts), strict=True):
            ids += chunk.token_ids
    for text in texts:
        decoding.close(text)
    return written


def _compare(company: list[list[int]], alone: list[list[int]]) -> tuple[int, int]:
    """Tokens that were compared, up to each text's first difference, and texts that have one."""
    compared = differing = 0
    for ours, theirs in zip(company, alone, strict=True):
        first = next((i for i, (x, y) in enumerate(zip(ours, theirs, strict=True)) if x != y), None)
        compared += len(ours) if first is None else first + 1
        differing += first is not None
    return compared, differing


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=200_000, help="at least so many are compared")
    parser.add_argument("--at-once", type=int, default=16, help="texts that step together")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    place = list_checkpoints(_SHIPPED)[-1]
    together, single = (
        batch_decoding(LatentModel(load_autoencoder(place / "autoencoder"), load_student(place / "student")), slots)
        for slots in (asked.at_once, 1)
    )
    rng = random.Random(asked.seed)
    compared = differing = 0
    while compared < asked.tokens:
        lengths = [rng.randint(1, _LONGEST_PROMPT) for _ in range(asked.at_once)]
        prompts = [[rng.randrange(2, together.vocab_size) for _ in range(length)] for length in lengths]
        params = [SamplingParams(seed=rng.randrange(2**63), temperature=asked.temperature) for _ in prompts]
        alone = [ids for prompt, some in zip(prompts, params, strict=True) for ids in _write(single, [prompt], [some])]
        more, other = _compare(_write(together, prompts, params), alone)
        compared, differing = compared + more, differing + other
    per_million = 1e6 * differing / compared
    results = ResultsFile(
        name="batch_rounding",
        command=shlex.join(["python", "-m", "benchmarks.batch_rounding", *sys.argv[1:]]),
        device=cpu_description(),
        seed=asked.seed,
        results=(Result(id=f"differences_t{asked.temperature:g}", value=per_million, unit="tokens per million"),),
    )
    path = results.write(Path("results"))
    sys.stdout.write(f"{differing} of {compared} tokens differ, {per_million:.0f} per million: {path}\n")


if __name__ == "__main__":
    main()
