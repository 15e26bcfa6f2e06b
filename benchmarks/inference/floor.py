"""The floor under a step: the matrix products without which no code computes it, listed by shape and timed alone."""

import time
from dataclasses import dataclass, replace

import torch

from latentforge.model.chunk_decoder.recurrent import RecurrentDecoder
from latentforge.model.chunk_decoder.split import SplitDecoder
from latentforge.model.chunk_decoder.windowed import GruDecoder
from latentforge.model.config import AutoencoderConfig, BackboneConfig, StudentConfig
from latentforge.model.heads import DeterministicHead
from latentforge.model.latent_model import LatentModel
from latentforge.model.logit_features import NoFeatures
from latentforge.model.token_level import TokenLevelModel


@dataclass(frozen=True)
class Product:
    """``count`` products of [rows, inner] with [inner, columns] in one step.

    Attributes:
        what: it computes.
        cached: what it multiplies with are keys or values of the texts before, and not weights.
    """

    what: str
    rows: int
    inner: int
    columns: int
    count: int = 1
    cached: bool = False

    @property
    def multiplications(self) -> int:
        """Of all of them."""
        return self.count * self.rows * self.inner * self.columns

    @property
    def numbers_read(self) -> int:
        """What they multiply with: weights once, however often they are used, keys and values at every use.

        A processor's caches hold the weights that each token of a chunk is multiplied with; they do not hold the keys
        of many long texts.
        """
        return (self.count if self.cached else _distinct(self)) * self.inner * self.columns


def step_products(model: LatentModel | TokenLevelModel, context_tokens: int, texts: int = 1) -> list[Product]:
    """Every product of a step that writes one chunk, or one token, behind each of some texts.

    Those with weights, and attention's with keys and values; of the induction heads all that is done for each of the K
    tokens. Norms, activations, softmaxes, additions and draws are not in it.

    Args:
        model: token-level; or with a GRU, a recurrent or a split decoder, logit features of the autoencoder or none,
            and a deterministic head.
        context_tokens: tokens before the chunk.
        texts: that step together.

    Raises:
        ValueError: the model has other parts.
    """
    if isinstance(model, TokenLevelModel):
        return _token_level_products(model, context_tokens, texts)
    student = model.student
    decoder, own_features = student.chunk_decoder, student.logit_features
    known_features = own_features is None or isinstance(own_features, NoFeatures)
    if not (
        isinstance(decoder, GruDecoder | RecurrentDecoder | SplitDecoder)
        and known_features
        and isinstance(student.head, DeterministicHead)
    ):
        raise ValueError(
            "the floor is known for a GRU, a recurrent or a split decoder, a deterministic head, and the autoencoder's "
            "features or none"
        )
    config = student.config
    products = _chunk_backbone(config, context_tokens, texts)
    if own_features is None:
        products += _features(config, model.autoencoder.config, texts)
    k, b, decoded = config.chunk_size, texts, config.chunk_decoder
    written_from = decoded.width
    if isinstance(decoder, SplitDecoder):
        products += _split(config, context_tokens, texts)
        written_from = config.hidden_size
    elif isinstance(decoder, RecurrentDecoder):
        products += _recurrent(config, texts)
    else:
        products += _gru(config, texts)
    products += [
        Product("decoder, reduce", b, written_from, decoded.rank, k),
        Product("decoder, correction", b, decoded.rank, decoded.frequent_ids or config.vocab_size, k),
    ]
    return products + _induction_products(config, config.embed_size, decoded.rank, context_tokens, texts, k)


def _chunk_backbone(config: StudentConfig, context_tokens: int, b: int) -> list[Product]:
    if not config.num_layers:
        return []
    k, h, e = config.chunk_size, config.hidden_size, config.embed_size
    if config.positions == "tokens":
        # All K read the same keys and values; that the first ones need not multiply with the last ones' is left out.
        return [Product("input map", b * k, e, h), *_backbone_products(config, 1 + context_tokens, b, k)]
    return [
        Product("chunk to input, up", b, k * e, 2 * h),
        Product("chunk to input, down", b, 2 * h, h),
        *_backbone_products(config, 1 + context_tokens // k, b),
    ]


def _features(config: StudentConfig, ae: AutoencoderConfig, b: int) -> list[Product]:
    """The head's latent, and logits of the autoencoder's features."""
    k, h = config.chunk_size, config.hidden_size
    return [
        Product("latent, up", b, h, 2 * h),
        Product("latent, down", b, 2 * h, config.latent_size),
        Product("autoencoder, from latent", b, config.latent_size, ae.chunk_hidden_size),
        Product("autoencoder, chunk, gate and up", b, ae.chunk_hidden_size, 2 * ae.intermediate_size),
        Product("autoencoder, chunk, down", b, ae.intermediate_size, ae.chunk_hidden_size),
        Product("autoencoder, expand", b, ae.chunk_hidden_size, k * ae.hidden_size),
        Product("autoencoder, tokens, gate and up", b * k, ae.hidden_size, 2 * ae.intermediate_size),
        Product("autoencoder, tokens, down", b * k, ae.intermediate_size, ae.hidden_size),
        Product("output layer", b * k, ae.hidden_size, config.vocab_size),
    ]


def _gru(config: StudentConfig, b: int) -> list[Product]:
    # The window's W·K tokens and the chunk's first K - 1 are read one after another; what goes in is known for the
    # window's, and one product.
    k, width = config.chunk_size, config.chunk_decoder.width
    window = config.chunk_decoder.window * k
    products = [Product("decoder, start", b, config.hidden_size, width)]
    for layer in range(config.chunk_decoder.num_layers):
        inner = config.embed_size if layer == 0 else width
        products += [Product(f"GRU {layer}, window's inputs", b * window, inner, 3 * width)] if window else []
        products += [Product(f"GRU {layer}, inputs", b, inner, 3 * width, k - 1)]
        products += [Product(f"GRU {layer}, states", b, width, 3 * width, window + k - 1)]
    return products


def _recurrent(config: StudentConfig, b: int) -> list[Product]:
    k, h, width = config.chunk_size, config.hidden_size, config.chunk_decoder.width
    products = []
    if config.num_layers:
        products = [Product("steering", b, h, k * width)]
    if config.num_layers and config.positions == "chunks":
        products += [Product("border", b, width, h)]
    for layer in range(config.chunk_decoder.num_layers):
        inner = config.embed_size if layer == 0 else width
        products += _carried_gru(layer, inner, width, b, k)
    return products + _blocks(config, b, k)


def _split(config: StudentConfig, context_tokens: int, b: int) -> list[Product]:
    """The last layers at the chunk's tokens but the first, behind what stands in for the first layers."""
    k, h, e, width = config.chunk_size, config.hidden_size, config.embed_size, config.chunk_decoder.width
    inside = k - 1
    products = [
        Product("decoder, steering", b, h, inside * width),
        *_carried_gru(0, e, width, b, k),
        *_blocks(config, b, inside),
        Product("decoder, input map", b, e, h, inside),
        Product("decoder, stand-in", b, width, h, inside),
    ]
    alone = config.model_copy(update={"num_layers": 1})
    for layer in range(config.chunk_decoder.num_layers):
        products += [
            # The first token sees itself and what stands before; the others on average half of the chunk more.
            replace(product, what=f"decoder layer {layer}, {product.what}", count=product.count * inside)
            for product in _backbone_products(alone, 1 + context_tokens + k // 2, b)
        ]
    return products


def _carried_gru(layer: int, inner: int, width: int, b: int, tokens: int) -> list[Product]:
    return [
        Product(f"GRU {layer}, inputs", b, inner, 3 * width, tokens),
        Product(f"GRU {layer}, states", b, width, 3 * width, tokens),
    ]


def _blocks(config: StudentConfig, b: int, tokens: int) -> list[Product]:
    width, products = config.chunk_decoder.width, []
    for block in range(config.chunk_decoder.num_blocks):
        products += [Product(f"decoder block {block}, gate and up", b, width, 4 * width, tokens)]
        products += [Product(f"decoder block {block}, down", b, 2 * width, width, tokens)]
    return products


def _token_level_products(model: TokenLevelModel, context_tokens: int, texts: int) -> list[Product]:
    config, b = model.config, texts
    h, e, width = config.hidden_size, config.embed_width, config.output_width
    return [
        *([] if model.input_map is None else [Product("input map", b, e, h)]),
        *_backbone_products(config, 1 + context_tokens, b),
        *_induction_products(config, e, width, context_tokens, b, 1),
        *([] if model.output_map is None else [Product("output map", b, h, width)]),
        Product("output layer", b, width, config.vocab_size),
    ]


def _backbone_products(config: BackboneConfig, positions: int, texts: int, together: int = 1) -> list[Product]:
    """Of so many positions of each text in one pass, that see so many, themselves among them."""
    b, h, layers = texts * together, config.hidden_size, config.num_layers
    q, kv, size = config.num_heads, config.num_kv_heads, config.head_dim
    return [
        Product("queries, keys and values", b, h, (q + 2 * kv) * size, layers),
        Product("attention scores", together * q // kv, size, positions, layers * texts * kv, cached=True),
        Product("attention values", together * q // kv, positions, size, layers * texts * kv, cached=True),
        Product("attention output", b, q * size, h, layers),
        Product("gate and up", b, h, 2 * config.intermediate_size, layers),
        Product("down", b, config.intermediate_size, h, layers),
    ]


def _induction_products(
    config: BackboneConfig, embed_size: int, out_size: int, context_tokens: int, texts: int, tokens: int
) -> list[Product]:
    """Of the heads that look up for each of a step's tokens, if the model has any."""
    if not config.induction.context:
        return []
    heads, of, b, k = config.induction.num_heads, config.induction.size, texts, tokens
    return [
        Product("induction, keys", b, config.induction.context * embed_size, heads * of, k),
        Product("induction, values", b, embed_size, heads * of, k),
        Product("induction, scores", 1, of, context_tokens, k * b * heads, cached=True),
        Product("induction, found", 1, context_tokens, of, k * b * heads, cached=True),
        Product("induction, output", b, heads * of, out_size, k),
    ]


def cpu_seconds(products: list[Product], repeats: int) -> float:
    """CPU time of all of them once, on this process's torch threads, the median over repeats.

    Weights lie as they multiply fastest, each in memory of its own, so that a step finds as little of them in the
    caches as it does in a model.
    """
    with torch.inference_mode():
        sides = [
            [_fastest(torch.randn(p.rows, p.inner), torch.randn(p.inner, p.columns)) for _ in range(_distinct(p))]
            for p in products
        ]

        def once() -> None:
            for product, pairs in zip(products, sides, strict=True):
                for index in range(product.count):
                    left, right, out = pairs[index % len(pairs)]
                    torch.mm(left, right, out=out)

        once()
        taken = []
        for _ in range(repeats):
            before = time.process_time()
            once()
            taken.append(time.process_time() - before)
    return sorted(taken)[len(taken) // 2]


def _distinct(product: Product) -> int:
    """How many different weights the products have: one for each layer, and one for what is done for every token."""
    return 1 if product.what.startswith(("decoder", "GRU", "induction")) else product.count


def _fastest(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two sides, the right one row by row or column by column, whichever is faster, and room for the product."""
    out = torch.empty(len(left), right.shape[1])
    layouts = [right, right.T.contiguous().T]

    def seconds(layout: torch.Tensor) -> float:
        torch.mm(left, layout, out=out)
        before = time.process_time()
        for _ in range(20):
            torch.mm(left, layout, out=out)
        return time.process_time() - before

    return left, min(layouts, key=seconds), out
