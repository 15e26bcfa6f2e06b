from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.causal_lm import CausalLM, open_causal_lm
from latentforge.model.chunk_decoder.split import SplitDecoder
from latentforge.model.config import AutoencoderConfig, ChunkDecoderConfig, LogitFeaturesConfig, StudentConfig
from latentforge.model.decoding.build import batch_decoding
from latentforge.model.initialisation import PARTS, start_autoencoder, start_student, start_token_level
from latentforge.model.io import save_pretrained
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams
from latentforge.model.student import Student
from latentforge.model.token_level import TokenLevelModel, token_level_config

V, K, EOS = 64, 4, 0
SIZES: dict[str, Any] = {
    "vocab_size": 70,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-4,
    "initializer_range": 0.2,
}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"rope_theta": 300.0, "tie_word_embeddings": False}),
    "llama": (LlamaConfig, LlamaForCausalLM, {"rope_theta": 1e4, "tie_word_embeddings": True}),
    "llama-3": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
            "tie_word_embeddings": False,
        },
    ),
}


@pytest.fixture(params=KINDS)
def pretrained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, CausalLM]:
    """A model of transformers, and the same as a student starts from it."""
    config, model_class, changes = KINDS[request.param]
    tied = changes["tie_word_embeddings"]
    rope = {"rope_type": "default"} | {k: v for k, v in changes.items() if k != "tie_word_embeddings"}
    torch.manual_seed(2)
    model = model_class(config(**SIZES, tie_word_embeddings=tied, rope_parameters=rope)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    model.save_pretrained(tmp_path / "pretrained")
    return model, open_causal_lm(str(tmp_path / "pretrained"))


def started_token_level(make: Callable[..., StudentConfig], source: CausalLM, vocab_size: int = 70) -> TokenLevelModel:
    torch.manual_seed(1)
    model = TokenLevelModel(token_level_config(make(**source.sizes, vocab_size=vocab_size))).eval()
    model.set_token_counts(torch.arange(vocab_size) ** 2)
    start_token_level(model, source, PARTS)
    return model


@torch.no_grad()
def test_a_token_level_student_starts_as_the_pretrained_model(
    pretrained: tuple[Any, CausalLM], student_config: Callable[..., StudentConfig], rng: torch.Generator
) -> None:
    theirs, source = pretrained
    model = started_token_level(student_config, source)
    tokens = torch.randint(2, 70, (3, 40), generator=rng)
    behind_eos = torch.cat([torch.full((3, 1), EOS), tokens[:, :-1]], 1)
    torch.testing.assert_close(model.logits(tokens), theirs(behind_eos).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_it_writes_what_the_pretrained_model_writes(
    pretrained: tuple[Any, CausalLM], student_config: Callable[..., StudentConfig], rng: torch.Generator
) -> None:
    theirs, source = pretrained
    model = started_token_level(student_config, source)
    prompt = torch.randint(2, 70, (9,), generator=rng).tolist()
    ids = [EOS, *prompt]
    decoding = batch_decoding(model, 1)
    text = decoding.open(prompt, SamplingParams(temperature=0))
    while decoding.prefill([text], 100):
        pass
    written = []
    for _ in range(8):
        logits = theirs(torch.tensor([ids])).logits[0, -1]
        logits[model.config.pad_id] = -torch.inf
        ids.append(int(logits.argmax()))
        written += decoding.step([text])[0].token_ids
    assert written == ids[-8:]


@torch.no_grad()
def test_a_smaller_vocabulary_has_the_first_ids(
    pretrained: tuple[Any, CausalLM], student_config: Callable[..., StudentConfig], rng: torch.Generator
) -> None:
    theirs, source = pretrained
    model = started_token_level(student_config, source, V)
    tokens = torch.randint(2, V, (1, 20), generator=rng)
    wanted = theirs(torch.cat([torch.tensor([[EOS]]), tokens[:, :-1]], 1)).logits[..., :V]
    torch.testing.assert_close(model.logits(tokens), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("width", [32, 12])
def test_narrow_tables_start_at_the_best_that_they_can_be(
    pretrained: tuple[Any, CausalLM],
    student_config: Callable[..., StudentConfig],
    rng: torch.Generator,
    width: int,
) -> None:
    theirs, source = pretrained
    torch.manual_seed(1)
    config = token_level_config(student_config(**source.sizes, vocab_size=70))
    model = TokenLevelModel(config.model_copy(update={"embed_size": width, "output_rank": width})).eval()
    start_token_level(model, source, PARTS)

    def best(table: torch.Tensor) -> torch.Tensor:
        mean = table.mean(0)
        u, s, vh = torch.linalg.svd(table - mean, full_matrices=False)
        nearest: torch.Tensor = (u[:, :width] * s[:width]) @ vh[:width] + mean
        return nearest

    inputs, outputs = best(theirs.get_input_embeddings().weight), best(theirs.lm_head.weight)
    tokens = torch.randint(2, 70, (3, 40), generator=rng)
    behind_eos = torch.cat([torch.full((3, 1), EOS), tokens[:, :-1]], 1)
    hidden = theirs.model(inputs_embeds=inputs[behind_eos]).last_hidden_state
    # A constant that is added to all logits is none to the softmax.
    wanted = (hidden @ outputs.T).log_softmax(-1)
    torch.testing.assert_close(model.logits(tokens).log_softmax(-1), wanted, rtol=1e-3, atol=1e-3)


def started_student(make: Callable[..., StudentConfig], source: CausalLM, **changes: Any) -> Student:
    torch.manual_seed(1)
    config = make(**source.sizes, vocab_size=70, **changes)
    student = Student(config).eval()
    student.set_token_counts(torch.arange(70))
    start_student(student, source, PARTS, torch.ones(70, dtype=torch.int64))
    return student


def whole_model(
    student: Student, make: Callable[..., AutoencoderConfig], rng: torch.Generator
) -> tuple[LatentModel, torch.Tensor, torch.Tensor]:
    """The student with an autoencoder, random chunks [2, 6, K], and their tokens behind an end of text [2, 1 + 6·K]."""
    tokens = torch.randint(2, 70, (2, 6, K), generator=rng)
    behind_eos = torch.cat([torch.full((2, 1), EOS), tokens.flatten(1)], 1)
    return LatentModel(Autoencoder(make(vocab_size=70)), student).eval(), tokens, behind_eos


@torch.no_grad()
def test_a_chunk_enters_as_the_mean_of_its_embeddings_at_the_scale_of_one(
    pretrained: tuple[Any, CausalLM], student_config: Callable[..., StudentConfig], rng: torch.Generator
) -> None:
    theirs, source = pretrained
    # As wide as the table: nothing is lost on the way.
    student = started_student(student_config, source, embed_size=32)
    tokens = torch.randint(2, 70, (2, 5, K), generator=rng)
    table = theirs.get_input_embeddings().weight
    mean = table[tokens].mean(2)
    scale = table.square().mean().sqrt()
    wanted = F.rms_norm(mean, (32,), eps=1e-6) * scale
    torch.testing.assert_close(student.chunk_inputs(student.embed(tokens)), wanted, rtol=1e-3, atol=1e-4)
    # Before the first chunk stands what ends a text.
    wanted = F.rms_norm(table[EOS], (32,), eps=1e-6) * scale
    torch.testing.assert_close(student.start_inputs(1)[0, 0], wanted, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_recurrent_writers_states_add_nothing_to_that_mean_before_they_have_learnt(
    pretrained: tuple[Any, CausalLM], student_config: Callable[..., StudentConfig], rng: torch.Generator
) -> None:
    _, source = pretrained
    decoder = ChunkDecoderConfig(kind="recurrent", width=8, rank=4)
    student = started_student(student_config, source, embed_size=32, chunk_decoder=decoder)
    tokens, borders = torch.randint(2, 70, (2, 5, K), generator=rng), torch.randn(2, 5, 8, generator=rng)
    embedded = student.embed(tokens)
    assert student.chunk_inputs(embedded, borders).equal(student.chunk_inputs(embedded, torch.zeros(2, 5, 8)))


@torch.no_grad()
def test_corrections_of_frequent_ids_are_those_ids_own(
    pretrained: tuple[Any, CausalLM], student_config: Callable[..., StudentConfig]
) -> None:
    _, source = pretrained
    tables = []
    for frequent in (None, 10):
        torch.manual_seed(1)
        decoder = ChunkDecoderConfig(width=8, rank=4, frequent_ids=frequent)
        student = Student(student_config(**source.sizes, vocab_size=70, chunk_decoder=decoder))
        # The last ids are the most frequent.
        counts = torch.arange(70)
        student.set_token_counts(counts)
        start_student(student, source, ["outputs"], counts)
        assert student.chunk_decoder is not None
        tables.append(student.chunk_decoder.output.whole())
    assert tables[1][60:].equal(tables[0][60:])
    assert not tables[1][:60].any()


@torch.no_grad()
def test_a_narrower_table_gives_the_mean_of_what_it_keeps(
    pretrained: tuple[Any, CausalLM], student_config: Callable[..., StudentConfig]
) -> None:
    theirs, source = pretrained
    student = started_student(student_config, source, embed_size=20)
    tokens = torch.arange(2, 66).view(1, 16, K)
    table = theirs.get_input_embeddings().weight
    u, s, vh = torch.linalg.svd(table - table.mean(0), full_matrices=False)
    kept = u[:, :20] * s[:20] @ vh[:20] + table.mean(0)
    wanted = F.rms_norm(kept[tokens].mean(2), (32,), eps=1e-6) * table.square().mean().sqrt()
    torch.testing.assert_close(student.chunk_inputs(student.embed(tokens)), wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_every_token_of_a_chunk_starts_at_a_share_of_the_pretrained_models_next_one(
    pretrained: tuple[Any, CausalLM],
    student_config: Callable[..., StudentConfig],
    autoencoder_config: Callable[..., AutoencoderConfig],
    rng: torch.Generator,
) -> None:
    theirs, source = pretrained
    student = started_student(
        student_config, source, embed_size=32, logit_features=LogitFeaturesConfig(kind="linear", width=32)
    )
    model, tokens, _ = whole_model(student, autoencoder_config, rng)
    hidden = model.hidden(tokens)
    features = model.logit_features(hidden, hidden.new_empty(0))
    logits = features @ model.output_weight.T
    wanted = 0.1 * theirs.lm_head(hidden)[:, :, None].expand(-1, -1, K, -1)
    # A constant that is added to all logits is none to the softmax.
    torch.testing.assert_close(logits.log_softmax(-1), wanted.log_softmax(-1), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_layers_that_read_tokens_start_with_the_pretrained_models_states_and_its_next_token(
    pretrained: tuple[Any, CausalLM],
    student_config: Callable[..., StudentConfig],
    autoencoder_config: Callable[..., AutoencoderConfig],
    rng: torch.Generator,
) -> None:
    theirs, source = pretrained
    features = LogitFeaturesConfig(kind="linear", width=32)
    decoder = ChunkDecoderConfig(kind="recurrent", width=8, rank=4)
    student = started_student(
        student_config, source, positions="tokens", embed_size=32, logit_features=features, chunk_decoder=decoder
    )
    model, tokens, behind_eos = whole_model(student, autoencoder_config, rng)
    of_theirs = theirs.model(behind_eos).last_hidden_state[:, : 6 * K : K]
    hidden = model.hidden(tokens)
    torch.testing.assert_close(hidden, of_theirs, rtol=1e-3, atol=1e-3)
    logits = model.logit_features(hidden, hidden.new_empty(0)) @ model.output_weight.T + student.bias
    of_next = theirs.lm_head(of_theirs)
    for k, share in enumerate([1.0, 0.1, 0.1, 0.1]):
        wanted = (share * of_next).log_softmax(-1)
        torch.testing.assert_close(logits[:, :, k].log_softmax(-1), wanted, rtol=1e-3, atol=2e-3)


@torch.no_grad()
@pytest.mark.parametrize("rank", [32, 12])
def test_a_split_decoder_starts_with_the_pretrained_models_next_token(
    pretrained: tuple[Any, CausalLM],
    student_config: Callable[..., StudentConfig],
    autoencoder_config: Callable[..., AutoencoderConfig],
    rng: torch.Generator,
    rank: int,
) -> None:
    theirs, source = pretrained
    decoder = ChunkDecoderConfig(kind="split", width=8, rank=rank, num_layers=1)
    features = LogitFeaturesConfig(kind="none")
    student = started_student(
        student_config, source, positions="tokens", embed_size=32, logit_features=features, chunk_decoder=decoder
    )
    model, tokens, behind_eos = whole_model(student, autoencoder_config, rng)
    states = theirs.model(behind_eos).last_hidden_state[:, : 6 * K : K]
    table = theirs.lm_head.weight
    u, s, vh = torch.linalg.svd(table - table.mean(0), full_matrices=False)
    wanted = states @ (u[:, :rank] * s[:rank] @ vh[:rank]).T
    found = model.logits(tokens).logits[:, :, 0]
    torch.testing.assert_close(found.log_softmax(-1), wanted.log_softmax(-1), rtol=1e-3, atol=2e-3)
    # Of the same text, so that it is known what the layer adds.
    inner = student.chunk_decoder
    assert isinstance(inner, SplitDecoder)
    of_text = theirs.model(behind_eos, output_hidden_states=True).hidden_states
    added = (of_text[1] - of_text[0]).square().mean((0, 1)).sqrt()
    assert (inner.scale / added).log().abs().max() < 0.7
    # So that states behind the norm are at that scale: of order 1 in every dimension.
    of_norm = inner.border_norm.weight * inner.scale
    whole = of_text[1].square().mean(-1).sqrt().mean().expand_as(of_norm)
    torch.testing.assert_close(of_norm, whole, rtol=0.3, atol=0)
    assert not student.bias.any()


@torch.no_grad()
def test_layers_alone_leave_the_rest_as_it_is(
    pretrained: tuple[Any, CausalLM], student_config: Callable[..., StudentConfig]
) -> None:
    _, source = pretrained
    torch.manual_seed(1)
    student = Student(student_config(**source.sizes))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    start_student(student, source, ["layers"], torch.ones(V, dtype=torch.int64))
    layers = source.layers()
    for name, value in student.state_dict().items():
        wanted = layers[name.removeprefix("backbone.")] if name.startswith("backbone.") else before[name]
        assert value.equal(wanted), name


@torch.no_grad()
def test_tables_alone_fit_layers_of_other_sizes(
    pretrained: tuple[Any, CausalLM], student_config: Callable[..., StudentConfig]
) -> None:
    _, source = pretrained
    torch.manual_seed(1)
    student = Student(student_config(hidden_size=16, num_layers=1))
    start_student(student, source, ["inputs", "outputs"], torch.ones(V, dtype=torch.int64))
    assert student.embed(torch.arange(V)).std() == pytest.approx(1, abs=0.05)
    assert student.chunk_decoder is not None
    assert student.chunk_decoder.output.weight.std() == pytest.approx(0.02, rel=0.05)
    baseline = TokenLevelModel(token_level_config(student.config))
    start_token_level(baseline, source, ["inputs"])
    assert baseline.embed(torch.arange(V)).std() == pytest.approx(1, abs=0.05)
    tables = {"embed_size": 8, "output_rank": 8}
    narrow = TokenLevelModel(token_level_config(student.config).model_copy(update=tables))
    start_token_level(narrow, source, ["inputs", "outputs"])
    assert narrow.embed(torch.arange(V)).std() == pytest.approx(1, abs=0.05)
    assert narrow.output_table.weight.std() == pytest.approx(0.02, rel=0.05)


@torch.no_grad()
def test_an_autoencoders_rows_are_as_long_as_each_other(
    pretrained: tuple[Any, CausalLM], autoencoder_config: Callable[..., AutoencoderConfig]
) -> None:
    theirs, source = pretrained
    autoencoder = Autoencoder(autoencoder_config())
    start_autoencoder(autoencoder, source)
    rows = autoencoder.embedding.weight
    torch.testing.assert_close(rows.norm(dim=1), torch.full((V,), 4.0))
    # Neighbours are neighbours.
    table = theirs.get_input_embeddings().weight[:V]
    theirs_alike = F.cosine_similarity((table - table.mean(0))[:, None], (table - table.mean(0))[None], dim=-1)
    ours_alike = F.cosine_similarity(rows[:, None], rows[None], dim=-1)
    assert torch.corrcoef(torch.stack([theirs_alike.flatten(), ours_alike.flatten()]))[0, 1] > 0.6


@torch.no_grad()
def test_with_equal_codes_it_is_an_autoencoders_codes_that_are_as_long_as_each_other(
    pretrained: tuple[Any, CausalLM], autoencoder_config: Callable[..., AutoencoderConfig]
) -> None:
    _, source = pretrained
    autoencoder = Autoencoder(autoencoder_config(equal_codes=True, hidden_size=24))
    before = autoencoder.embedding.weight.clone()
    start_autoencoder(autoencoder, source)
    assert not autoencoder.embedding.weight.allclose(before)
    chunks = torch.arange(V)[:, None].expand(-1, K)
    codes = autoencoder.encode(chunks).mean.unflatten(-1, (K, -1))
    torch.testing.assert_close(codes.norm(dim=-1), torch.full((V, K), 2.0))
    assert autoencoder.decode(codes.flatten(1)).argmax(-1).equal(chunks)


def test_a_student_without_norms_of_queries_comes_back_from_its_folder(
    pretrained: tuple[Any, CausalLM], student_config: Callable[..., StudentConfig], tmp_path: Path
) -> None:
    from latentforge.model.io import load_student

    student = started_student(student_config, pretrained[1])
    save_pretrained(student, tmp_path)
    again = load_student(tmp_path)
    assert again.config == student.config
    state = again.state_dict()
    assert all(value.equal(state[name]) for name, value in student.state_dict().items())
