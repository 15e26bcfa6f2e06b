"""A teacher of another vocabulary judges what a model writes: as text, in its own tokens."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.evaluate.generations import Score


def retokenised(score: Score, own: TextTokenizer, teachers: TextTokenizer) -> Score:
    """A score of ids of one tokenizer from that of another one's.

    Prompt and continuation are tokenised apart, so that every token that is scored is of the continuation, and all of
    it is scored; the token at the joint may not be what the whole text would have there, for every model alike.

    Args:
        score: takes and counts the teacher's tokens.
        own: of the ids that the result takes.
        teachers: of the ids that ``score`` takes.

    Returns:
        gives log probabilities of the teacher's tokens: as many as the teacher's tokenizer makes of the text.
    """

    def as_prompts(ids: Sequence[Sequence[int]]) -> list[list[int]]:
        texts = [own.decode(text[1:] if list(text[:1]) == [own.bos_id] else text) for text in ids]
        return [teachers.begin(text) for text in teachers.encode_texts(texts)]

    def as_continuations(ids: Sequence[Sequence[int]]) -> list[list[int]]:
        return teachers.encode_texts([own.decode(text, goes_on=True) for text in ids])

    def judge(prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        ended = [bool(ids) and ids[-1] == own.eos_id for ids in texts]
        bodies = as_continuations([ids[:-1] if end else ids for ids, end in zip(texts, ended, strict=True)])
        ends = [[teachers.eos_id] if end else [] for end in ended]
        return score(as_prompts(prompts), [body + end for body, end in zip(bodies, ends, strict=True)])

    return judge
