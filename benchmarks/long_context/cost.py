"""What a written token costs at least, by arithmetic: what is read for it, and what is computed."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from benchmarks.inference.floor import Product
from benchmarks.long_context.device_speed import DeviceSpeed


class TokenCost(BaseModel):
    """One token's share of a step that writes for all texts.

    Attributes:
        weight_bytes: of weights, each read once a step; tables of which a step looks up rows are not in it.
        cache_bytes: of keys and values, the induction heads' among them.
        attention_flops: of the products with keys and values.
        flops: of all products.
        pace: tokens/s, if nothing else took time and every product only as long as reading or computing it does.
    """

    model_config = ConfigDict(frozen=True)

    weight_bytes: float
    cache_bytes: float
    attention_flops: float
    flops: float
    pace: float


def token_cost(products: Sequence[Product], tokens: int, speed: DeviceSpeed, item_bytes: int = 4) -> TokenCost:
    """The cost of a token on a device.

    Args:
        products: of one step of all texts.
        tokens: that the step writes, all texts together.
        speed: of the device.
        item_bytes: of a weight, a key's or a value's number.
    """
    seconds = sum(
        max(
            item_bytes * product.numbers_read / speed.bytes_per_second,
            2 * product.multiplications / speed.flops_per_second,
        )
        for product in products
    )
    cached = [product for product in products if product.cached]
    weights = [product for product in products if not product.cached]
    return TokenCost(
        weight_bytes=item_bytes * sum(product.numbers_read for product in weights) / tokens,
        cache_bytes=item_bytes * sum(product.numbers_read for product in cached) / tokens,
        attention_flops=2 * sum(product.multiplications for product in cached) / tokens,
        flops=2 * sum(product.multiplications for product in products) / tokens,
        pace=tokens / seconds,
    )
