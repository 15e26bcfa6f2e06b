import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentforge.model.decoding import backbone, slot_decoding
from latentforge.model.decoding.backbone import SlotBackbone
from latentforge.model.decoding.batch import OpenText, WrittenChunk
from latentforge.model.decoding.build import batch_decoding
from latentforge.model.decoding.slot_decoding import SlotDecoding
from latentforge.model.decoding.token_positions import TokenPositions
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams, TextSampling
from latentforge.model.token_level import TokenLevelModel

AnyModel = LatentModel | TokenLevelModel
Distributions = Callable[..., Tensor]
V, PAD = 64, 1
GREEDY = SamplingParams(temperature=0)


def prompt_of(length: int) -> list[int]:
    # Few different ids, so that induction heads find something.
    rng = random.Random(length)
    return [rng.randrange(2, 12) for _ in range(length)]


class Written:
    """A text, and what every step said of it."""

    def __init__(self, decoding: SlotDecoding, prompt: list[int], seed: int, temperature: float = 1) -> None:
        self.seed, self.decoding = seed, decoding
        self.ids = [PAD] * (-len(prompt) % decoding.chunk_size) + prompt
        self.prompt_length = len(self.ids)
        self.text = decoding.open(prompt, SamplingParams(seed=seed, temperature=temperature), logprobs=V)
        self.logprobs: list[float] = []
        self.rows: list[Tensor] = []

    def take(self, chunk: WrittenChunk) -> None:
        assert chunk.logprobs is not None
        assert chunk.likeliest is not None
        self.ids += chunk.token_ids
        self.logprobs += chunk.logprobs
        for best in chunk.likeliest:
            ids, values = zip(*best, strict=True)
            assert sorted(values, reverse=True) == list(values)
            self.rows.append(torch.zeros(V).index_copy(0, torch.tensor(ids), torch.tensor(values)))

    def check(self, model: AnyModel, distributions: Distributions) -> None:
        """Every distribution is the teacher-forced one of the whole text."""
        wanted = distributions(model, self.ids, first_drawn=self.prompt_length, seed=self.seed)[self.prompt_length :]
        torch.testing.assert_close(torch.stack(self.rows), wanted, rtol=0, atol=2e-4)
        drawn = wanted.gather(1, torch.tensor(self.ids[self.prompt_length :])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(self.logprobs), drawn, rtol=0, atol=2e-4)


def read(decoding: SlotDecoding, texts: list[OpenText], at_once: int = 10**6) -> None:
    while decoding.prefill(texts, at_once):
        pass
    assert not any(text.num_unread for text in texts)


def step(written: list[Written]) -> None:
    for text, chunk in zip(written, written[0].decoding.step([w.text for w in written]), strict=True):
        text.take(chunk)


def lengths_of(model: AnyModel) -> list[int]:
    return [0, 1, model.chunk_size, 9, 29, 7]


@pytest.mark.parametrize("call_keys", [backbone._CALL_KEYS, 0], ids=["at once", "by itself"])
def test_ragged_texts_step_together_as_each_is_teacher_forced(
    model: AnyModel, distributions: Distributions, call_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all attend at once up to the longest one's end, and where each does by itself."""
    monkeypatch.setattr(backbone, "_CALL_KEYS", call_keys)
    decoding = batch_decoding(model, 6)
    texts = [Written(decoding, prompt_of(length), seed) for seed, length in enumerate(lengths_of(model))]
    read(decoding, [text.text for text in texts])
    for _ in range(2 if model.chunk_size > 1 else 6):
        step(texts)
    # In any order.
    step(texts[::-1])
    for text in texts:
        text.check(model, distributions)


def test_a_long_text_does_not_make_short_ones_read_as_much(make_any: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read_at_once: list[tuple[int, int]] = []

    def noted(queries: Tensor, keys: Tensor, *args: Any, **kwargs: Any) -> Any:
        read_at_once.append((len(keys), keys.shape[2]))
        return attention(queries, keys, *args, **kwargs)

    def stepped(lengths: list[int]) -> list[tuple[int, int]]:
        """What one layer of a step reads: of how many texts, and how many positions of each."""
        decoding = batch_decoding(make_any("token-level"), len(lengths))
        texts = [decoding.open(prompt_of(length), GREEDY) for length in lengths]
        read(decoding, texts)
        read_at_once.clear()
        decoding.step(texts)
        return read_at_once[: len(read_at_once) // 2]

    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    assert stepped([30, 2, 3]) == [(3, 31)]
    monkeypatch.setattr(backbone, "_CALL_KEYS", 10)
    assert stepped([30, 2, 3]) == [(1, 31), (1, 3), (1, 4)]
    # Of nearly one length all at once, however cheap a call is.
    monkeypatch.setattr(backbone, "_CALL_KEYS", 0)
    assert stepped([30, 29, 28]) == [(3, 31)]
    assert stepped([5, 5]) == [(2, 6)]
    # It would take less, but not as much as the calls do.
    monkeypatch.setattr(backbone, "_CALL_KEYS", 100)
    assert stepped([30, 2, 3]) == [(3, 31)]


def test_texts_join_and_leave_between_steps(
    model: AnyModel, distributions: Distributions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At random: long prompts in pieces beside steps, subsets, slots used again, NaN in those that are free."""
    monkeypatch.setattr(slot_decoding, "PIECE_CHUNKS", 2)
    rng = random.Random(3)
    decoding = batch_decoding(model, 4, max_tokens=40)
    running: list[Written] = []
    done: list[Written] = []
    joined = 0
    while len(done) < 12:
        poison(decoding)
        if decoding.num_free and joined < 12 and rng.random() < 0.7:
            running.append(Written(decoding, prompt_of(rng.choice([0, 1, 3, 8, 13, 22])), joined))
            joined += 1
        decoding.prefill([w.text for w in running], rng.choice([1, 8, 40]))
        ready = [w for w in running if not w.text.num_unread and w.text.room >= model.chunk_size]
        picked = rng.sample(ready, rng.randint(0, len(ready)))
        if picked:
            step(picked)
        for w in [w for w in running if w.text.room < model.chunk_size or (w.rows and rng.random() < 0.15)]:
            decoding.close(w.text)
            running.remove(w)
            done.append(w)
    assert decoding.num_free == 4 - len(running)
    assert sum(len(w.rows) for w in done) > 40
    for w in done:
        if w.rows:
            w.check(model, distributions)


def memory_of(decoding: SlotDecoding) -> Iterator[tuple[Tensor, int]]:
    """All that is kept of texts, and the dimension that the slots are."""
    if isinstance(decoding._backbone, SlotBackbone):
        yield decoding._backbone.memory, 2
    if isinstance(decoding._backbone, TokenPositions):
        yield decoding._backbone.positions.memory, 2
    if decoding._states is not None:
        yield decoding._states.memory, 1
    if decoding._induction is not None:
        yield decoding._induction.keys, 0
        yield decoding._induction.values, 0
        yield decoding._induction.tail, 0


def poison(decoding: SlotDecoding) -> None:
    used = decoding.num_slots - decoding.num_free
    for memory, dimension in memory_of(decoding):
        memory.narrow(dimension, used, decoding.num_free).fill_(torch.nan)


def test_a_prompt_read_in_pieces_gives_what_it_gives_at_once(model: AnyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(at_once: int) -> list[Tensor]:
        decoding = batch_decoding(model, 3)
        texts = [Written(decoding, prompt_of(length), length) for length in (30, 5, 21)]
        read(decoding, [text.text for text in texts], at_once)
        step(texts)
        return [row for text in texts for row in text.rows]

    whole = run(1000)
    monkeypatch.setattr(slot_decoding, "PIECE_CHUNKS", 3)
    for at_once in (1, 14, 1000):
        for pieces, wanted in zip(run(at_once), whole, strict=True):
            torch.testing.assert_close(pieces, wanted, rtol=0, atol=1e-4)


def test_prefill_is_bounded_and_takes_turns(make_any: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_decoding, "PIECE_CHUNKS", 2)
    decoding = batch_decoding(make_any("gru-window1"), 3)
    long, short, empty = (decoding.open(prompt_of(length), GREEDY) for length in (40, 3, 0))
    assert [text.num_unread for text in (long, short, empty)] == [40, 4, 0]
    assert decoding.prefill([long, short, empty], 11) == 8
    assert decoding.prefill([long, short, empty], 12) == 12
    assert [text.num_unread for text in (long, short)] == [24, 0]
    assert decoding.prefill([short, long], 1) == 8
    assert len(decoding.step([short, empty])) == 2
    with pytest.raises(ValueError, match="16 tokens of a text's prompt are to be read"):
        decoding.step([short, long])
    assert decoding.prefill([short, empty], 100) == 0


def test_a_text_fills_the_whole_context(model: AnyModel, distributions: Distributions) -> None:
    decoding = batch_decoding(model, 2)
    text, beside = Written(decoding, prompt_of(3), 1), Written(decoding, prompt_of(5), 2)
    read(decoding, [text.text, beside.text])
    assert text.text.room == model.max_tokens - text.prompt_length
    while text.text.room:
        step([text])
        if beside.text.room > 20:
            step([beside])
    assert len(text.ids) == model.max_tokens
    # Beside one that is full, others go on.
    step([beside])
    for some in (text, beside):
        some.check(model, distributions)
    with pytest.raises(ValueError, match="without room"):
        decoding.step([text.text])


def test_exact_numbers_are_the_same_bit_for_bit_in_any_company(model: AnyModel) -> None:
    params = {length: SamplingParams(seed=length, temperature=0.8, top_p=0.95) for length in lengths_of(model)}
    alone: dict[int, list[WrittenChunk]] = {}
    for length in params:
        decoding = batch_decoding(model, 1, exact=True)
        text = decoding.open(prompt_of(length), params[length], logprobs=3)
        read(decoding, [text])
        alone[length] = [decoding.step([text])[0] for _ in range(3)]
    decoding = batch_decoding(model, 7, exact=True)
    decoding.step([decoding.open([], params[0])])
    texts = {length: decoding.open(prompt_of(length), params[length], logprobs=3) for length in params}
    read(decoding, list(texts.values()))
    for index in range(3):
        chunks = decoding.step(list(texts.values()))
        assert chunks == [alone[length][index] for length in texts]


def test_forced_ids_are_read_instead_of_drawn(model: AnyModel, distributions: Distributions) -> None:
    decoding = batch_decoding(model, 3)
    texts = [Written(decoding, prompt_of(length), length) for length in (4, 9, 2)]
    read(decoding, [text.text for text in texts])
    forced = [[7, 8, 9][: model.chunk_size], [], [5]]
    for text, chunk in zip(texts, decoding.step([text.text for text in texts], forced), strict=True):
        text.take(chunk)
    step(texts)
    for text, ids in zip(texts, forced, strict=True):
        assert text.ids[text.prompt_length :][: len(ids)] == ids
        text.check(model, distributions)


def test_only_texts_that_ask_get_log_probabilities(make_any: Any) -> None:
    decoding = batch_decoding(make_any("induction"), 4)
    texts = [decoding.open([5, 6], SamplingParams(seed=1), logprobs) for logprobs in (None, 0, 2, None)]
    read(decoding, texts)
    none, bare, two, last = decoding.step(texts)
    assert none == last == WrittenChunk(none.token_ids)
    assert none.token_ids == bare.token_ids == two.token_ids
    assert bare.likeliest == [[]] * 4
    assert two.likeliest is not None
    assert [len(best) for best in two.likeliest] == [2] * 4
    assert two.logprobs == pytest.approx(bare.logprobs)


def test_a_text_whose_logits_are_not_finite_is_named_and_disturbs_no_other(make_any: Any) -> None:
    model = make_any("induction")
    decoding = batch_decoding(model, 3)
    texts = [decoding.open(prompt, SamplingParams(seed=1), logprobs=0) for prompt in ([5, 6], [5, 63], [5, 6])]
    with torch.no_grad():
        model.student.embedding.weight[63] = torch.nan
    read(decoding, texts)
    first, broken, last = decoding.step(texts)
    assert first.finite
    assert not broken.finite
    assert first.logprobs == pytest.approx(last.logprobs)
    assert first.token_ids == last.token_ids
    # Nothing of it stays in its slot.
    for text in texts:
        decoding.close(text)
    texts = [decoding.open([5, 6], SamplingParams(seed=1), logprobs=0) for _ in range(3)]
    read(decoding, texts)
    for chunk in decoding.step(texts):
        assert chunk.logprobs == pytest.approx(first.logprobs)


def test_the_same_seed_writes_the_same_whatever_is_beside_it(model: AnyModel) -> None:
    def write(decoding: SlotDecoding, seed: int, beside: int) -> list[int]:
        others = [decoding.open(prompt_of(i), SamplingParams(seed=99 + i)) for i in range(beside)]
        text = decoding.open(prompt_of(6), SamplingParams(seed=seed))
        read(decoding, [*others, text])
        written = [i for _ in range(3) for i in decoding.step([*others, text])[-1].token_ids]
        for some in (*others, text):
            decoding.close(some)
        return written

    decoding = batch_decoding(model, 5)
    first = write(decoding, 1, 0)
    assert first == write(decoding, 1, 4) == write(decoding, 1, 2)
    assert first != write(decoding, 2, 4)


def test_texts_that_cannot_be_opened_are_refused(make_any: Any) -> None:
    decoding = batch_decoding(make_any("gru-window1"), 1, max_tokens=14)
    assert decoding.max_tokens == 12
    with pytest.raises(ValueError, match="the prompt has 9 tokens, but at most 8 leave room"):
        decoding.open([5] * 9, GREEDY)
    for bad in (-1, 64):
        with pytest.raises(ValueError, match=f"prompt id {bad} is not in the vocabulary of 64 ids"):
            decoding.open([5, bad], GREEDY)
    text = decoding.open([5] * 8, GREEDY)
    with pytest.raises(RuntimeError, match="all 1 slots are taken"):
        decoding.open([5], GREEDY)
    decoding.close(text)
    with pytest.raises(ValueError, match="closed"):
        decoding.step([text])
    with pytest.raises(ValueError, match="num_slots=0"):
        batch_decoding(make_any("gru-window1"), 0)
    for bad in (3, 68):
        with pytest.raises(ValueError, match=rf"max_tokens={bad} is not in 4\.\.64"):
            batch_decoding(make_any("gru-window1"), 1, max_tokens=bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_held_once_and_train_on(make_any: Any, dtype: torch.dtype) -> None:
    """Stored column by column in float32, row by row in other formats."""
    model = make_any("induction").to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch_decoding(model, 1)
    attention = model.student.backbone.layers[0].self_attn
    place = attention.q_proj.weight.data_ptr()
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.v_proj.weight.untyped_storage().data_ptr()
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    model.train()
    model.logits(torch.full((1, 3, 4), 5)).logits.sum().backward()
    with torch.no_grad():
        attention.v_proj.weight.mul_(3)
    decoding = batch_decoding(model, 1)
    assert attention.q_proj.weight.data_ptr() == place
    text = Written(decoding, [5, 6, 7, 8, 9], 1)
    read(decoding, [text.text])
    step([text])
    tokens = torch.tensor(text.ids).view(1, -1, 4)
    with torch.no_grad():
        logits = model.logits(tokens).logits[0, -1]
    logits[:, PAD] = -torch.inf
    torch.testing.assert_close(torch.stack(text.rows), logits.log_softmax(-1).float(), rtol=0, atol=2e-4)


def test_copy_boosts_are_drawn_from_as_they_are_below_temperature_1(
    copying_model: AnyModel, distributions: Distributions
) -> None:
    """By inversion of the distribution made slowly: from tokens of the whole text, boost by boost."""
    model, temperatures = copying_model, (1.0, 0.4, 2.5, 0.8)
    heads = model.induction if isinstance(model, TokenLevelModel) else model.student.induction
    assert heads is not None
    # Against copying, so that no text soon repeats a token for ever, whatever temperatures do.
    heads.gain.data.mul_(-2)
    decoding = batch_decoding(model, len(temperatures) + 1)
    decoding.open([5, 6], GREEDY)
    texts = [Written(decoding, prompt_of(13 - seed), seed, t) for seed, t in enumerate(temperatures)]
    read(decoding, [text.text for text in texts])
    for _ in range(max(1, 12 // model.chunk_size)):
        step(texts)
        step(texts[::3])
    moved = 0.0
    for text, temperature in zip(texts, temperatures, strict=True):
        # Log probabilities stay the model's, whatever is drawn.
        text.check(model, distributions)
        logits = distributions(model, text.ids, first_drawn=text.prompt_length, seed=text.seed).double()
        boosts = boosts_of(model, text.ids)
        uniforms = TextSampling(SamplingParams(seed=text.seed), [], V).uniforms
        for place in range(text.prompt_length, len(text.ids)):
            drawn = logits[place] / temperature
            if temperature < 1:
                drawn = (logits[place] - boosts[place]) / temperature + boosts[place]
                moved += (drawn.softmax(0) - (logits[place] / temperature).softmax(0)).abs().sum().item()
            share, ends = uniforms.take(), drawn.softmax(0).cumsum(0)
            token = text.ids[place]
            assert ends[token] - drawn.softmax(0)[token] - 1e-4 < share < ends[token] + 1e-4
    assert moved > 1


@torch.no_grad()
def boosts_of(model: AnyModel, ids: list[int]) -> Tensor:
    """What induction heads add to the logits of every token of a text, float64 [L, V], token by token."""
    tokens = torch.tensor([ids])
    if isinstance(model, TokenLevelModel):
        attention = model.output(tokens).induction
    else:
        chunks = tokens.unflatten(1, (-1, model.chunk_size))
        attention = model.induction(chunks, model.student.embed(chunks))
    assert attention is not None
    found = attention.look_up()
    rows = torch.zeros(len(ids), V, dtype=torch.float64)
    for place in range(len(ids)):
        for before in range(place):
            rows[place, ids[before]] += found.boosts[place, before]
    return rows
