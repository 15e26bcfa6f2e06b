"""The floor under a step: the matrix products without which no code computes it, listed by shape and timed alone."""

import time
from dataclasses import dataclass

import torch

from latentforge.model.chunk_decoder.recurrent import RecurrentDecoder
from latentforge.model.chunk_decoder.windowed import GruDecoder
from latentforge.model.config import AutoencoderConfig, StudentConfig
from latentforge.model.heads import DeterministicHead
from latentforge.model.latent_model import LatentModel
from latentforge.model.logit_features import NoFeatures


@dataclass(frozen=True)
class Product:
    """``count`` products of [rows, inner] with weights [inner, columns] in one step."""

    what: str
    rows: int
    inner: int
    columns: int
    count: int = 1

    @property
    def multiplications(self) -> int:
        """Of all of them."""
        return self.count * self.rows * self.inner * self.columns


def step_products(model: LatentModel, context_tokens: int, texts: int = 1) -> list[Product]:
    """Every product of a step that writes one chunk behind each of some texts.

    Those with weights, and attention's with keys and values; of the induction heads all that is done for each of the K
    tokens. Norms, activations, softmaxes, additions and draws are not in it.

    Args:
        model: with a GRU or a recurrent decoder, logit features of the autoencoder or none, and a deterministic head.
        context_tokens: tokens before the chunk.
        texts: that step together.

    Raises:
        ValueError: the model has other parts.
    """
    student = model.student
    decoder, own_features = student.chunk_decoder, student.logit_features
    known_features = own_features is None or isinstance(own_features, NoFeatures)
    if not (
        isinstance(decoder, GruDecoder | RecurrentDecoder)
        and known_features
        and isinstance(student.head, DeterministicHead)
    ):
        raise ValueError(
            "the floor is known for a GRU or a recurrent decoder, a deterministic head, and the autoencoder's features "
            "or none"
        )
    config = student.config
    products = _backbone(config, context_tokens, texts)
    if own_features is None:
        products += _features(config, model.autoencoder.config, texts)
    if isinstance(decoder, RecurrentDecoder):
        products += _recurrent(config, texts)
    else:
        products += _gru(config, texts)
    k, b, decoded = config.chunk_size, texts, config.chunk_decoder
    products += [
        Product("decoder, reduce", b, decoded.width, decoded.rank, k),
        Product("decoder, correction", b, decoded.rank, decoded.frequent_ids or config.vocab_size, k),
    ]
    return products + _induction(config, context_tokens, texts)


def _backbone(config: StudentConfig, context_tokens: int, b: int) -> list[Product]:
    if not config.num_layers:
        return []
    k, h, e = config.chunk_size, config.hidden_size, config.embed_size
    q, kv, size = config.num_heads, config.num_kv_heads, config.head_dim
    chunks, layers = 1 + context_tokens // k, config.num_layers
    return [
        Product("chunk to input, up", b, k * e, 2 * h),
        Product("chunk to input, down", b, 2 * h, h),
        Product("queries, keys and values", b, h, (q + 2 * kv) * size, layers),
        Product("attention scores", q // kv, size, chunks, layers * b * kv),
        Product("attention values", q // kv, chunks, size, layers * b * kv),
        Product("attention output", b, q * size, h, layers),
        Product("gate and up", b, h, 2 * config.intermediate_size, layers),
        Product("down", b, config.intermediate_size, h, layers),
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
        products = [Product("border", b, width, h), Product("steering", b, h, k * width)]
    for layer in range(config.chunk_decoder.num_layers):
        inner = config.embed_size if layer == 0 else width
        products += [Product(f"GRU {layer}, inputs", b, inner, 3 * width, k)]
        products += [Product(f"GRU {layer}, states", b, width, 3 * width, k)]
    for block in range(config.chunk_decoder.num_blocks):
        products += [Product(f"decoder block {block}, gate and up", b, width, 4 * width, k)]
        products += [Product(f"decoder block {block}, down", b, 2 * width, width, k)]
    return products


def _induction(config: StudentConfig, context_tokens: int, b: int) -> list[Product]:
    if not config.induction.context:
        return []
    k, e, rank = config.chunk_size, config.embed_size, config.chunk_decoder.rank
    heads, of = config.induction.num_heads, config.induction.size
    return [
        Product("induction, keys", b, config.induction.context * e, heads * of, k),
        Product("induction, values", b, e, heads * of, k),
        Product("induction, scores", 1, of, context_tokens, k * b * heads),
        Product("induction, found", 1, context_tokens, of, k * b * heads),
        Product("induction, output", b, heads * of, rank, k),
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
