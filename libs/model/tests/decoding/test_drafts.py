"""Drafts behind texts that somebody else writes, against drafting from the whole text every time."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from latentforge.model.decoding.batch import Draft, DraftRequest, OpenText
from latentforge.model.decoding.build import batch_decoding
from latentforge.model.decoding.slot_decoding import SlotDecoding
from latentforge.model.heads import EnergyHead
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams
from latentforge.model.token_level import TokenLevelModel

AnyModel = LatentModel | TokenLevelModel
Distributions = Callable[..., Tensor]
PAD = 1
GREEDY = SamplingParams(temperature=0)


class Grown:
    """A text that grows by ids from outside, whole chunks of which its decoding has read."""

    def __init__(self, decoding: SlotDecoding, prompt: Sequence[int]) -> None:
        self.decoding, self.k = decoding, decoding.chunk_size
        self.text = decoding.open(prompt, GREEDY, logprobs=0)
        self.ids = [PAD] * (-len(prompt) % self.k) + list(prompt)
        self.num_read = len(self.ids)

    @property
    def begun(self) -> list[int]:
        return self.ids[self.num_read :]

    def grow(self, ids: Sequence[int]) -> None:
        self.ids += ids
        whole = len(self.begun) // self.k * self.k
        self.decoding.extend(self.text, self.begun[:whole])
        self.num_read += whole

    def request(self, most: int, least: float = 0.0) -> DraftRequest:
        return DraftRequest(self.text, self.begun, most, least)


def read(decoding: SlotDecoding, texts: Sequence[OpenText]) -> None:
    while decoding.prefill(texts, 10**6):
        pass


def drafted_from_the_whole(
    model: AnyModel, distributions: Distributions, ids: Sequence[int], most: int, least: float = 0.0
) -> tuple[Draft, float]:
    """What a draft must be, and the smallest gap between the first two tokens anywhere in it."""
    known, product, gap = list(ids), 1.0, 1.0
    draft = Draft([], [])
    k = model.chunk_size
    while len(draft.token_ids) < most:
        filled = [*known, *[2] * (-len(known) % k or k)]
        row = distributions(model, filled)[len(known)].exp()
        (first, second), best = (part.tolist() for part in row.topk(2))
        gap = min(gap, first - second)
        product *= first
        if product < least:
            break
        draft.token_ids.append(best[0])
        draft.probabilities.append(first)
        known.append(best[0])
    return draft, gap


def check(
    found: Draft, model: AnyModel, distributions: Distributions, ids: Sequence[int], most: int, least: float = 0
) -> None:
    wanted, gap = drafted_from_the_whole(model, distributions, ids, most, least)
    if gap < 1e-4:  # rounding may choose
        return
    assert found.token_ids == wanted.token_ids
    torch.testing.assert_close(torch.tensor(found.probabilities), torch.tensor(wanted.probabilities), rtol=0, atol=2e-4)


def has_noise(model: AnyModel) -> bool:
    return isinstance(model, LatentModel) and isinstance(model.student.head, EnergyHead)


def test_drafts_of_growing_texts_are_those_of_the_whole(sure_model: AnyModel, distributions: Distributions) -> None:
    """At any place of a chunk, over the ends of chunks, some texts alone or beside others that do not draft."""
    rng = random.Random(7)
    decoding = batch_decoding(sure_model, 4, max_tokens=40)
    texts = [Grown(decoding, [rng.randrange(2, 12) for _ in range(length)]) for length in (1, 6, 0, 9)]
    for _ in range(4):
        read(decoding, [text.text for text in texts])
        asking = rng.sample(texts, rng.randint(1, 4))
        mosts = [rng.randint(1, 7) for _ in asking]
        drafts = decoding.draft([text.request(most) for text, most in zip(asking, mosts, strict=True)])
        for text, most, draft in zip(asking, mosts, drafts, strict=True):
            check(draft, sure_model, distributions, text.ids, most)
        for text, draft in zip(asking, drafts, strict=True):
            # As a teacher does: a part of the draft, and a token of its own.
            text.grow([*draft.token_ids[: rng.randint(0, len(draft.token_ids))], rng.randrange(2, 12)][:5])


def test_nothing_of_a_draft_is_kept(model: AnyModel) -> None:
    """Not even beside a longer text, to whose end all of a batch are read."""
    rng = random.Random(11)
    decoding = batch_decoding(model, 2)
    k = decoding.chunk_size
    long, short = (Grown(decoding, [rng.randrange(2, 12) for _ in range(length)]) for length in (6 * k, 3))
    read(decoding, [long.text, short.text])
    long.grow([3] * (k - 1))
    room = short.text.room
    first = decoding.draft([short.request(3 * k)])
    decoding.draft([long.request(k)])
    assert short.text.room == room
    if has_noise(model):
        return
    assert decoding.draft([short.request(3 * k)]) == first
    # What is written behind them is what would have been written without the drafts.
    fresh = batch_decoding(model, 2)
    wanted = [fresh.open(grown.ids[: grown.num_read], GREEDY, logprobs=0) for grown in (long, short)]
    read(fresh, wanted)
    for found, expected in zip(decoding.step([long.text, short.text]), fresh.step(wanted), strict=True):
        assert found == expected


def test_a_draft_ends_where_it_is_no_longer_likely(make_any: Any, distributions: Distributions) -> None:
    model = make_any("recurrent-bare")
    decoding = batch_decoding(model, 3)
    texts = [Grown(decoding, [5, 6, 7, 5, 6]) for _ in range(3)]
    read(decoding, [text.text for text in texts])
    whole, _ = drafted_from_the_whole(model, distributions, texts[0].ids, 9)
    products = torch.tensor(whole.probabilities).cumprod(0).tolist()
    # Between the second token's and the third's; above the first's; never.
    leasts = [(products[1] + products[2]) / 2, 0.9999, 0.0]
    drafts = decoding.draft([text.request(9, least) for text, least in zip(texts, leasts, strict=True)])
    assert [len(draft.token_ids) for draft in drafts] == [2, 0, 9]
    for draft, least in zip(drafts, leasts, strict=True):
        check(draft, model, distributions, texts[0].ids, 9, least)


def test_a_draft_ends_where_the_room_does(make_any: Any) -> None:
    decoding = batch_decoding(make_any("recurrent-bare"), 1, max_tokens=12)
    text = Grown(decoding, [5, 6, 7, 5])
    text.grow([2, 3, 4, 5, 6])
    read(decoding, [text.text])
    [draft] = decoding.draft([text.request(20)])
    assert len(draft.token_ids) == 12 - len(text.ids)
    text.grow([2] * (12 - len(text.ids)))
    read(decoding, [text.text])
    assert decoding.draft([text.request(5)]) == [Draft([], [])]


def test_not_a_number_ends_a_draft(make_any: Any) -> None:
    model = make_any("recurrent-bare")
    model.student.chunk_decoder.output.weight.data[0] = torch.nan
    decoding = batch_decoding(model, 1)
    text = Grown(decoding, [5, 6, 7])
    read(decoding, [text.text])
    assert decoding.draft([text.request(5)]) == [Draft([], [])]


def test_what_cannot_be_drafted_is_refused(make_any: Any) -> None:
    decoding = batch_decoding(make_any("recurrent-bare"), 2, max_tokens=16)
    text = Grown(decoding, [5, 6, 7])
    with pytest.raises(ValueError, match="4 tokens of a text are to be read"):
        decoding.draft([text.request(2)])
    read(decoding, [text.text])
    with pytest.raises(ValueError, match=r"4 ids are begun; whole chunks of 4 go to extend\(\)"):
        decoding.draft([DraftRequest(text.text, [2, 3, 4, 5], 2)])
    with pytest.raises(ValueError, match="text id 64 is not in the vocabulary"):
        decoding.draft([DraftRequest(text.text, [64], 2)])
    with pytest.raises(ValueError, match="3 ids are no whole chunks of 4"):
        decoding.extend(text.text, [2, 3, 4])
    with pytest.raises(ValueError, match="16 ids are more than the 12 that the text has room for"):
        decoding.extend(text.text, [2] * 16)
    with pytest.raises(ValueError, match="text id -1 is not in the vocabulary"):
        decoding.extend(text.text, [2, 3, 4, -1])
    # Refused, it is as it was.
    assert decoding.draft([text.request(2)])
    decoding.close(text.text)
    with pytest.raises(ValueError, match="the text is closed"):
        decoding.draft([text.request(2)])
