"""Starting a fresh student or autoencoder from a pretrained causal language model."""

from collections.abc import Collection
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.causal_lm import CausalLM
from latentforge.model.chunk_decoder.recurrent import RecurrentDecoder
from latentforge.model.chunk_decoder.split import SplitDecoder
from latentforge.model.layers import TABLE_SCALE, output_scale
from latentforge.model.logit_features import LinearFeatures
from latentforge.model.principal_components import principal_components
from latentforge.model.student import Student
from latentforge.model.token_level import TokenLevelModel

#: layers: the transformer. inputs: the token embeddings, and with the layers how a chunk of them enters these. outputs:
#: the output tables, and with the layers how a hidden state meets them.
Part = Literal["layers", "inputs", "outputs"]
PARTS: tuple[Part, ...] = ("layers", "inputs", "outputs")

# Of the logits that a linear map starts at. States of chunks are not yet those of tokens: SmolLM2's whole logits are 3
# nats/token worse than the frequencies in the bias (K = 4, the Debian handbook, before the first step).
_FEATURES_SHARE = 0.1
# Of correction tables: small beside the logits that they correct.
_CORRECTION_STD = 0.02
# Of a text by which the scale of states is known.
_TEXT_TOKENS = 512


@torch.no_grad()
def start_student(student: Student, source: CausalLM, parts: Collection[Part], token_counts: Tensor) -> None:
    """Starts a fresh student from a pretrained model.

    A chunk enters layers that read chunks as the mean of its K token embeddings, at the scale of one of them; layers
    that read tokens get the embeddings, as far as so many principal components carry them, and give the pretrained
    model's states. Where the student has a linear map from the hidden state to an output table of its own, every token
    of a chunk starts at a small share of the logits that the pretrained model gives for the next token, likewise; the
    first one behind layers that read tokens, at the whole of them. A split decoder starts with the pretrained model's
    output layer, so that the first token of a chunk is that model's.

    Args:
        student: on the CPU, in float32; with ``layers`` of the source's sizes.
        source: covers the student's vocabulary.
        parts: what is taken over.
        token_counts: how often each token stands in the training data, int64 [V].
    """
    config, own_layers = student.config, _take_layers(student, source, parts)
    if "inputs" in parts:
        table = source.inputs()[: config.vocab_size]
        components = principal_components(table, config.embed_size)
        student.embedding.weight.copy_(components.coordinates / TABLE_SCALE)
        if own_layers and student.reads_tokens:
            student.input_map.weight.copy_(components.back.T)
            student.input_map.bias.copy_(components.mean)
            student.start.copy_(student.input_map(components.coordinates[config.eos_id]))
        elif own_layers:
            _start_chunks(student, components.back, components.mean, _scale(table, token_counts))
            student.start.copy_(table[config.eos_id])
    if "outputs" not in parts:
        return
    table = source.outputs()[: config.vocab_size]
    features, decoder = student.logit_features, student.chunk_decoder
    if isinstance(features, LinearFeatures):
        _start_features(features, table, student.backbone.norm.weight if student.backbone and own_layers else None)
        if own_layers and student.reads_tokens:
            features.map.weight[: config.logit_features.width] /= _FEATURES_SHARE
            # How often a token stands in texts, the table knows.
            student.bias.zero_()
    if isinstance(decoder, SplitDecoder) and own_layers:
        _start_split(student, decoder, table, token_counts)
    elif decoder is not None:
        correction = principal_components(table, config.chunk_decoder.rank).coordinates * _CORRECTION_STD
        ids = decoder.output.ids
        decoder.output.weight.copy_(correction if ids is None else correction[ids])


@torch.no_grad()
def start_token_level(model: TokenLevelModel, source: CausalLM, parts: Collection[Part]) -> None:
    """Starts a fresh token-level student from a pretrained model.

    With all parts, and without induction heads, its logits are the pretrained model's for a text behind its
    end-of-text id, which ends the text before it in packed data; of narrower tables as far as so many principal
    components carry them.

    Args:
        model: on the CPU, in float32; with ``layers`` of the source's sizes.
        source: covers the student's vocabulary.
        parts: what is taken over.
    """
    config, own_layers = model.config, _take_layers(model, source, parts)
    if "inputs" in parts:
        table = source.inputs()[: config.vocab_size]
        if not own_layers or model.input_map is not None:
            components = principal_components(table, config.embed_width)
            table = components.coordinates
            if own_layers and model.input_map is not None:
                model.input_map.weight.copy_(components.back.T)
                model.input_map.bias.copy_(components.mean)
        model.embedding.weight.copy_(table / TABLE_SCALE)
        model.start.copy_(model.inputs_of(table[config.eos_id]))
    if "outputs" in parts:
        table = source.outputs()[: config.vocab_size]
        if not own_layers:
            coordinates = principal_components(table, config.output_width).coordinates
            model.output_table.weight.copy_(coordinates * _CORRECTION_STD)
            return
        if model.output_map is not None:
            factors = _factors(table, config.output_width, model.backbone.norm.weight)
            model.output_map.weight.copy_(factors.map)
            model.output_table.weight.copy_(factors.table)
        else:
            model.output_table.weight.copy_(table / output_scale(config.hidden_size))
        # How often a token stands in texts, the table knows.
        model.bias.zero_()


@torch.no_grad()
def start_autoencoder(autoencoder: Autoencoder, source: CausalLM) -> None:
    """Starts a fresh autoencoder's token embeddings from a pretrained model's, all rows as long as each other.

    They are the output rows too: with rows of unequal length the longest would win over the token that was meant. With
    ``equal_codes`` it is the rows' codes that are as long as each other.

    Args:
        autoencoder: on the CPU, in float32.
        source: covers the autoencoder's vocabulary.
    """
    config = autoencoder.config
    rows = principal_components(source.inputs()[: config.vocab_size], config.hidden_size).coordinates
    autoencoder.embedding.weight.copy_(nn.functional.normalize(rows, dim=1) * config.hidden_size**0.5)
    if config.equal_codes:
        autoencoder.equalise_codes()


def _take_layers(model: Student | TokenLevelModel, source: CausalLM, parts: Collection[Part]) -> bool:
    """Gives a model the source's layers if they are among the parts, and says whether they are."""
    if "layers" in parts:
        assert model.backbone is not None
        model.backbone.load_state_dict(source.layers())
    return "layers" in parts


def _scale(table: Tensor, token_counts: Tensor) -> Tensor:
    """The root mean square of a token's embedding in the training data; one is added to each count."""
    shares = (token_counts + 1).double()
    squares = table.double().square().mean(1)
    return ((shares / shares.sum()) @ squares).sqrt()


def _start_chunks(student: Student, back: Tensor, mean: Tensor, scale: Tensor) -> None:
    """Makes the chunk's MLP the mean of its K embeddings, and its norm's output as large as one of them.

    silu(a) - silu(-a) = a: of the 2·h units in the middle the first h have the mean as their input, the others its
    negative, and together they are linear.
    """
    k, up, down = student.config.chunk_size, student.chunk_up, student.chunk_down
    to_mean = back.T.repeat(1, k) / k
    # Weights move by the same step whatever their size: units of order 1 in the middle, as a norm follows anyway. The
    # coordinates have the mean 0 and the variance 1; those of K tokens are about independent.
    size = (mean.square().mean() + back.square().sum() / (k * len(mean))).sqrt()
    to_mean, mean = to_mean / size, mean / size
    up.weight.copy_(torch.cat([to_mean, -to_mean]))
    up.bias.copy_(torch.cat([mean, -mean]))
    eye = torch.eye(len(mean))
    down.weight.copy_(torch.cat([eye, -eye], 1))
    down.bias.zero_()
    student.chunk_norm.weight.fill_(float(scale))
    decoder = student.chunk_decoder
    if isinstance(decoder, RecurrentDecoder) and decoder.border is not None:
        # What its states add to that mean is learnt.
        decoder.border.weight.zero_()


def _start_split(student: Student, decoder: SplitDecoder, table: Tensor, token_counts: Tensor) -> None:
    """Gives a split decoder a table's logits, and the scales of what the first layers give and add to their inputs."""
    config, backbone = student.config, student.backbone
    assert backbone is not None
    factors, ids = _factors(table, config.chunk_decoder.rank, backbone.norm.weight), decoder.output.ids
    decoder.map.weight.copy_(factors.map)
    decoder.output.weight.copy_(factors.table if ids is None else factors.table[ids])
    # How often a token stands in texts, the table knows.
    student.bias.zero_()
    # Texts of tokens as frequent as they are will do. A text's first states are out of all proportion.
    num, skipped = min(_TEXT_TOKENS, config.max_positions), 8
    shares = (token_counts + 1).double()
    drawn = torch.multinomial(shares, num, replacement=True, generator=torch.Generator().manual_seed(0))
    inputs = student.input_map(student.embed(drawn))[None]
    known = backbone(inputs_embeds=inputs, use_cache=False, output_hidden_states=True).hidden_states
    lower, first = known[-1 - decoder.num_last], min(skipped, num - 1)
    decoder.scale.copy_((lower - inputs)[0, first:].square().mean(0).sqrt())
    # Of what is normalised each dimension is then at that scale.
    whole = lower[0, first:].square().mean(1).sqrt().mean()
    decoder.border_norm.weight.copy_(whole / decoder.scale)


def _start_features(features: LinearFeatures, table: Tensor, norm: Tensor | None) -> None:
    """Makes the logits of a chunk's tokens a share of a table's, up to a constant, which the softmax does not see.

    Without a ``norm`` (the weight of the pretrained layers' last one, whose outputs the map reads) only the table.
    """
    width = features.output.embedding_dim
    if norm is None:
        features.output.weight.copy_(principal_components(table, width).coordinates * _CORRECTION_STD)
        return
    factors = _factors(table, width, norm)
    features.output.weight.copy_(factors.table)
    features.map.weight.copy_(_FEATURES_SHARE * factors.map.repeat(features.slots[0], 1))
    features.map.bias.zero_()


class _Factors(NamedTuple):
    """``table @ (output_scale(d) · map @ hidden)`` are logits up to a constant, which the softmax does not see.

    Attributes:
        table: float [V, d].
        map: float [d, h].
    """

    table: Tensor
    map: Tensor


def _factors(table: Tensor, width: int, norm: Tensor) -> _Factors:
    """Of a table that reads states behind a norm with these weights; exact where it is no wider than its rank."""
    components = principal_components(table, width)
    # Both share the size so that what the table reads is of order 1 before output_scale: normalised states have entries
    # of about the norm's weights.
    size = (components.back * norm).square().sum(1).mean().sqrt()
    return _Factors(components.coordinates * size / output_scale(width), components.back / size)
