"""Output layer, cross-entropy and divergences in one, with gradients made by hand: no logits of a whole batch.

Why: 2,048 tokens × 151,936 ids are 1.2 GB of float32 logits, and autograd would keep several such tensors. Here logits
are made for some tokens at a time, turned into their own gradient in place while they are still in the processor's
cache, multiplied into the gradients of the layer's inputs and weight, and dropped: memory does not grow with tokens ×
vocabulary, and on a CPU it is much faster. Fused linear cross-entropy is the same for CE alone (Liger Kernel, arXiv
2410.10989).

With logits ℓ, lse their logsumexp, p = exp(ℓ - lse), realised token y, kept ids S, the teacher's masses t of those and
t_tail of all others (they sum to 1), and the student's s_tail = Σ_{v ∉ S} p_v:

    CE = lse - ℓ_y                              ∂CE/∂ℓ_v = p_v - 1{v = y}
    KD = Σ_{v ∈ S} t_v·(log t_v - log p_v)      ∂KD/∂ℓ_v = p_v - t_v                     for v ∈ S
         + t_tail·(log t_tail - log s_tail)     ∂KD/∂ℓ_v = p_v - t_tail·p_v / s_tail     for v ∉ S
    TV and reverse KL                           ∂/∂ℓ_v = p_v·f_b with b the bucket of v (sparse_kd.divergence_factors)

In a weighted sum of them every id outside S has a gradient that is exp(ℓ_v) times one number: a multiplication of a
buffer that the logsumexp needs anyway. The k+1 kept ids are then put right by a scatter. On a GPU these passes are
what a step waits for, and can be fused: see logit_passes.py.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from latentforge.model.induction_attention import AttentionBlocks, InductionAttention
from latentforge.model.logit_passes import IN_PLACE, LogitPasses
from latentforge.model.sparse_kd import NEVER, BucketLosses, Buckets, bucket_losses, divergence_factors, student_buckets

_LOGITS_AT_ONCE_CPU = 2**20
_LOGITS_AT_ONCE_GPU = 2**27
# A product with fewer rows spends its time on packing the weight: at 32,768 ids 128 take 0.79 of the time of 32, though
# their logits leave the cache.
_LEAST_TOKENS_AT_ONCE = 128
# Places of which an induction head's shares of all places before them are held at once.
_PLACES_AT_ONCE_CPU = 256
_PLACES_AT_ONCE_GPU = 1024


class TokenWeights(NamedTuple):
    """What each of n tokens weighs in a sum of losses, float32 [n]; all but that of CE are 0 where there is no row.

    A divergence without weights adds nothing to the sum, and costs no gradient.
    """

    ce: Tensor
    kd: Tensor
    tv: Tensor | None = None
    reverse_kl: Tensor | None = None


class TokenLosses(NamedTuple):
    """Losses of n tokens.

    Attributes:
        total: Σ_n Σ_loss weight·loss, a scalar with a gradient; nothing else has one.
        each: the losses, unweighted.
        best: whether no token has a larger logit than the realised one, bool [n].
        agrees: the same of the teacher's likeliest, of those that it gives: what a greedy draft hits, bool [n].
    """

    total: Tensor
    each: BucketLosses
    best: Tensor
    agrees: Tensor


class OutputLayer(NamedTuple):
    """An output layer and what it reads: logits are ``inputs @ weight.T + bias``, and what induction heads add.

    Attributes:
        inputs: float [n, w].
        weight: float [V, w].
        bias: float [V].
        num_fixed: leading columns of the weight that get no gradient.
        induction: of the same n tokens, or None.
        ids: whose rows the weight has, ascending, int64 [m]; then that is [m, w], and the others' logits are their
            bias and what induction heads add. None where it has all.
    """

    inputs: Tensor
    weight: Tensor
    bias: Tensor
    num_fixed: int = 0
    induction: InductionAttention | None = None
    ids: Tensor | None = None

    def logits(self, picked: slice | Tensor = slice(None)) -> Tensor:
        """Logits of some of the n tokens, float32 [m, V], new memory."""
        inputs = self.inputs[picked]
        if self.induction is None:
            return self._of(inputs).float()
        found = self.induction.look_up(picked)
        logits = self._of(_with_vectors(inputs, found.vectors)).float()
        # ``logits[i, ids[i, j]] += boosts[i, j]`` for every j: repeated ids sum up.
        return logits.scatter_add_(1, found.ids, found.boosts.float())

    def _of(self, inputs: Tensor) -> Tensor:
        if self.ids is None:
            return torch.addmm(self.bias, inputs, self.weight.T)
        return self.bias.expand(len(inputs), -1).index_add(1, self.ids, inputs @ self.weight.T)


def _with_vectors(inputs: Tensor, vectors: Tensor) -> Tensor:
    """Inputs [n, w] with vectors [n, v] added to their last columns."""
    return inputs + F.pad(vectors, (inputs.shape[1] - vectors.shape[1], 0)).to(inputs.dtype)


def token_losses(
    layer: OutputLayer,
    buckets: Buckets,
    weights: TokenWeights,
    passes: LogitPasses = IN_PLACE,
    wanted: Tensor | None = None,
) -> TokenLosses:
    """Losses of an output layer's logits [n, V], weighted and summed; differentiable in all of its tensors.

    Under autocast the products are in its number format; their sums and everything else stay in float32.

    Args:
        layer: the output layer and its inputs.
        buckets: the teacher's rows; its last kept id is the realised token.
        weights: of the losses.
        passes: over the logits.
        wanted: the tokens that anything weighs for or is asked of, bool [n]; the losses of others may be 0, and then
            their logits are not made. None wants all.
    """
    run: Callable[..., tuple[Tensor, ...]] = _TokenLosses.apply
    assert layer.induction is None or layer.induction.places is None
    induction = () if layer.induction is None else layer.induction[:-1]
    device = layer.inputs.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layer.inputs.dtype
    # By hand, because the gradients are products too, some of them into memory that is there: autocast leaves those.
    with torch.autocast(device, enabled=False):
        how = torch.is_grad_enabled(), dtype, passes, layer.ids, wanted
        total, best, agrees, *each = run(*layer[:4], *buckets, *weights, *how, *induction)
    return TokenLosses(total, BucketLosses(*each), best, agrees)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        num_fixed: int,
        kept_ids: Tensor,
        kept: Tensor,
        teacher: Tensor,
        ce_weights: Tensor,
        kd_weights: Tensor,
        tv_weights: Tensor | None,
        reverse_kl_weights: Tensor | None,
        with_grad: bool,
        dtype: torch.dtype,
        passes: LogitPasses,
        ids: Tensor | None,
        wanted: Tensor | None,
        *induction: Tensor,
    ) -> tuple[Tensor, ...]:
        n, vocab_size, num_rows = inputs.shape[0], bias.shape[0], weight.shape[0]
        places = None if ids is None else _places(ids, vocab_size)
        if places is not None:
            # The ids that have rows come first from here on, so that their logits lie together.
            bias, kept_ids = torch.empty_like(bias).index_copy_(0, places, bias), places[kept_ids]
            induction = (*induction[:-1], places[induction[-1]]) if induction else ()
        losses = BucketLosses(*(torch.zeros_like(ce_weights) for _ in BucketLosses._fields))
        with_divergences = tv_weights is not None or reverse_kl_weights is not None
        tv_weights = torch.zeros_like(ce_weights) if tv_weights is None else tv_weights
        reverse_kl_weights = torch.zeros_like(ce_weights) if reverse_kl_weights is None else reverse_kl_weights
        best, agrees = (torch.zeros(n, dtype=torch.bool, device=inputs.device) for _ in range(2))
        attention = InductionAttention(*induction) if induction else None
        blocks = AttentionBlocks(attention) if attention is not None else None
        layer = OutputLayer(inputs.to(dtype), weight.to(dtype), bias.to(dtype), num_fixed)
        input_grad = torch.zeros_like(layer.inputs) if with_grad else None
        learned_grad, bias_grad = torch.zeros_like(weight[:, num_fixed:]), torch.zeros_like(bias)
        for part in _parts(inputs, vocab_size, attention, wanted):
            read, boosted_ids = layer.inputs[part], None
            if attention is not None and blocks is not None:
                text, first = divmod(part.start, attention.ids.shape[1])
                vectors, boosts, boosted_ids = blocks.find(text, first, first + part.stop - part.start)
                read = _with_vectors(read, vectors)
            logits = _first_logits(layer, read)
            if passes.in_place or boosted_ids is not None:
                logits = logits.float()
            if boosted_ids is not None:
                logits.scatter_add_(1, boosted_ids, boosts.float())
            block_ids = kept_ids[part]
            block = Buckets(block_ids, kept[part], teacher[part])
            kept_logits = logits.gather(1, block_ids).float()
            logits.scatter_(1, block_ids, NEVER)
            top, tail_sum = passes.tail(logits)
            others = torch.cat([kept_logits.masked_fill(~block.kept, NEVER), top], 1)
            largest = others.amax(1)
            best[part] = kept_logits[:, -1] >= largest
            likeliest = block.teacher[:, :-1].argmax(1, keepdim=True)
            agrees[part] = kept_logits.gather(1, likeliest)[:, 0] >= largest
            tail_lse = top[:, 0] + tail_sum.log()
            student = student_buckets(block, kept_logits, tail_lse)
            block_losses = bucket_losses(block, student)
            for values, of_block in zip(losses, block_losses, strict=True):
                values[part] = of_block
            if input_grad is None:
                continue
            ce_w, kd_w = ce_weights[part], kd_weights[part]
            both = ce_w + kd_w
            # Tail: (c + d)·p - d·t_tail·p / s_tail. With e = exp(ℓ - top) p = e·exp(top - lse), and p / s_tail =
            # e / tail_sum.
            tail_p = (top[:, 0] - student.lse).exp()
            tail_factor = both * tail_p - kd_w * block.teacher[:, -1] / tail_sum
            # Kept ids: (c + d)·p - d·t, and -c for the realised token, in the column that is in use for it: the last
            # one, or where that token is among the top ones, its own there.
            kept_p = student.log_mass[:, :-1].exp()
            kept_grad = both[:, None] * kept_p - kd_w[:, None] * block.teacher[:, :-1]
            if with_divergences:
                factors = divergence_factors(block, student, block_losses, tv_weights[part], reverse_kl_weights[part])
                tail_factor += tail_p * factors[:, -1]
                kept_grad += kept_p * factors[:, :-1]
            buffer = passes.gradient(logits, top, tail_factor, dtype)
            is_realised = block.kept & (block_ids == block_ids[:, -1:])
            kept_grad = (kept_grad * block.kept - ce_w[:, None] * is_realised).to(buffer.dtype)
            # Zeros first: where every id is kept there is no tail, and its coefficient multiplied numbers that mean
            # nothing. Then sums, since ids stand twice where a column is not in use, which adds 0: nothing is rounded.
            buffer.scatter_(1, block_ids, 0).scatter_add_(1, block_ids, kept_grad)
            # With g the gradient of logits = x·Wᵀ + b: that of b is Σ g, of x is g·W, of W is gᵀ·x.
            bias_grad += buffer.sum(0, dtype=torch.float32)
            gradient = buffer[:, :num_rows].to(dtype)
            torch.mm(gradient, layer.weight, out=input_grad[part])
            _add_product(learned_grad, gradient.T, read[:, num_fixed:])
            if blocks is not None and boosted_ids is not None:
                # The transpose of the scatter is a gather: each boost went into one logit, and has its gradient.
                of_vectors = input_grad[part, -vectors.shape[1] :].to(vectors.dtype)
                blocks.learn(of_vectors, buffer.gather(1, boosted_ids).to(boosts.dtype))
        if input_grad is not None:
            of_induction = () if blocks is None else blocks.gradients()
            if places is not None:
                bias_grad = bias_grad[places]
            ctx.save_for_backward(input_grad, F.pad(learned_grad, (num_fixed, 0)), bias_grad, *of_induction)
        total = ce_weights * losses.ce + kd_weights * losses.kd
        if with_divergences:
            total = total + tv_weights * losses.tv + reverse_kl_weights * losses.reverse_kl
        ctx.mark_non_differentiable(best, agrees, *losses)
        return total.sum(), best, agrees, *losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Everything was made in the forward pass, for a total whose own gradient is 1.
        inputs, weight, bias, *of_induction = (gradient * grads[0] for gradient in ctx.saved_tensors)
        # Ids have none.
        return inputs, weight, bias, *[None] * 13, *of_induction, *([None] if of_induction else [])


def _places(ids: Tensor, vocab_size: int) -> Tensor:
    """Where each id of the vocabulary stands if ``ids`` come first and the others behind them, int64 [V]."""
    others = torch.ones(vocab_size, dtype=torch.bool, device=ids.device).index_fill_(0, ids, False)
    ordered = others.to(torch.uint8).argsort(stable=True)
    return torch.empty_like(ordered).index_copy_(0, ordered, torch.arange(vocab_size, device=ids.device))


def _first_logits(layer: OutputLayer, read: Tensor) -> Tensor:
    """The output layer's logits [m, V], of a weight that has rows for the first ids of the bias."""
    num_rows = len(layer.weight)
    if num_rows == len(layer.bias):
        return torch.addmm(layer.bias, read, layer.weight.T)
    logits = layer.bias.repeat(len(read), 1)
    logits[:, :num_rows].addmm_(read, layer.weight.T)
    return logits


def _parts(
    inputs: Tensor, vocab_size: int, attention: InductionAttention | None, wanted: Tensor | None
) -> Iterator[slice]:
    """The n tokens in parts that are computed at once; with induction heads each is of one text.

    What stands before the first and behind the last wanted token of a text, or of all without induction heads, is left
    out: where a student learns what a teacher wrote, half of a batch is prompts and pads. On a GPU it is not, since to
    ask which these are is to wait for it; nor where tensors have no content, as in a dry run.
    """
    on_cpu = inputs.device.type == "cpu"
    step = max(_LEAST_TOKENS_AT_ONCE, (_LOGITS_AT_ONCE_CPU if on_cpu else _LOGITS_AT_ONCE_GPU) // vocab_size)
    knows_wanted = wanted is not None and on_cpu and not isinstance(wanted, FakeTensor)
    length = len(inputs)
    if attention is not None:
        length, step = attention.ids.shape[1], min(step, _PLACES_AT_ONCE_CPU if on_cpu else _PLACES_AT_ONCE_GPU)
    for text in range(0, len(inputs), length):
        first, end = text, text + length
        if wanted is not None and knows_wanted:
            places = wanted[first:end].nonzero()
            if not len(places):
                continue
            first, end = text + int(places[0]), text + int(places[-1]) + 1
        for start in range(first, end, step):
            yield slice(start, min(start + step, end))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left @ right to what may be of a wider number format."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
