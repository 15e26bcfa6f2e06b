"""The floor under a step: the matrix products without which no code computes it, listed by shape and timed alone."""

import time
from dataclasses import dataclass

import torch

from latentforge.model.chunk_decoder import GruDecoder
from latentforge.model.heads import DeterministicHead
from latentforge.model.latent_model import LatentModel


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
        model: with a GRU decoder, logit features of the autoencoder and a deterministic head, as the shipped one.
        context_tokens: tokens before the chunk.
        texts: that step together.

    Raises:
        ValueError: the model has other parts.
    """
    config, ae, b = model.student.config, model.autoencoder.config, texts
    decoder = model.student.chunk_decoder
    own_features = model.student.logit_features
    if not isinstance(decoder, GruDecoder) or own_features or not isinstance(model.student.head, DeterministicHead):
        raise ValueError("the floor is known for a GRU decoder, a deterministic head and the autoencoder's features")
    k, h, e, v = config.chunk_size, config.hidden_size, config.embed_size, config.vocab_size
    width, rank = config.chunk_decoder.width, config.chunk_decoder.rank
    q, kv, size = config.num_heads, config.num_kv_heads, config.head_dim
    chunks = 1 + context_tokens // k
    layers = config.num_layers
    corrected = config.chunk_decoder.frequent_ids or v
    products = [
        Product("chunk to input, up", b, k * e, 2 * h),
        Product("chunk to input, down", b, 2 * h, h),
        Product("queries, keys and values", b, h, (q + 2 * kv) * size, layers),
        Product("attention scores", q // kv, size, chunks, layers * b * kv),
        Product("attention values", q // kv, chunks, size, layers * b * kv),
        Product("attention output", b, q * size, h, layers),
        Product("gate and up", b, h, 2 * config.intermediate_size, layers),
        Product("down", b, config.intermediate_size, h, layers),
        Product("latent, up", b, h, 2 * h),
        Product("latent, down", b, 2 * h, config.latent_size),
        Product("autoencoder, from latent", b, config.latent_size, ae.chunk_hidden_size),
        Product("autoencoder, chunk, gate and up", b, ae.chunk_hidden_size, 2 * ae.intermediate_size),
        Product("autoencoder, chunk, down", b, ae.intermediate_size, ae.chunk_hidden_size),
        Product("autoencoder, expand", b, ae.chunk_hidden_size, k * ae.hidden_size),
        Product("autoencoder, tokens, gate and up", b * k, ae.hidden_size, 2 * ae.intermediate_size),
        Product("autoencoder, tokens, down", b * k, ae.intermediate_size, ae.hidden_size),
        Product("output layer", b * k, ae.hidden_size, v),
        Product("decoder, start", b, h, width),
        Product("decoder, reduce", b, width, rank, k),
        Product("decoder, correction", b, rank, corrected, k),
    ]
    # The window's W·K tokens and the chunk's first K - 1 are read one after another; what goes in is known for the
    # window's, and one product.
    window = config.chunk_decoder.window * k
    for layer in range(config.chunk_decoder.num_layers):
        inner = e if layer == 0 else width
        products += [Product(f"GRU {layer}, window's inputs", b * window, inner, 3 * width)] if window else []
        products += [Product(f"GRU {layer}, inputs", b, inner, 3 * width, k - 1)]
        products += [Product(f"GRU {layer}, states", b, width, 3 * width, window + k - 1)]
    if config.induction.context:
        heads, of = config.induction.num_heads, config.induction.size
        products += [
            Product("induction, keys", b, config.induction.context * e, heads * of, k),
            Product("induction, values", b, e, heads * of, k),
            Product("induction, scores", 1, of, context_tokens, k * b * heads),
            Product("induction, found", 1, context_tokens, of, k * b * heads),
            Product("induction, output", b, heads * of, rank, k),
        ]
    return products


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
