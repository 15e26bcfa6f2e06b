import torch
from torch import Tensor

from latentforge.model.config import InductionConfig
from latentforge.model.induction import InductionHead
from latentforge.model.layers import TABLE_SCALE, output_scale

B, L, E, SIZE, V, OUT = 2, 23, 6, 8, 9, 5


def make_head(context: int = 3, num_heads: int = 2) -> InductionHead:
    torch.manual_seed(context)
    head = InductionHead(E, OUT, InductionConfig(context=context, num_heads=num_heads, size=SIZE)).double()
    torch.nn.init.normal_(head.out.weight)
    with torch.no_grad():
        head.nothing.copy_(torch.arange(num_heads) + 0.3)
        head.log_sharpness.copy_(torch.arange(num_heads) / 3 + 0.9)
        head.gain.copy_(torch.arange(num_heads) - 0.6)
    return head


def texts() -> tuple[Tensor, Tensor]:
    """Ids [B, L] and embedded tokens [B, L, E], which know nothing of each other."""
    rng = torch.Generator().manual_seed(1)
    return torch.randint(V, (B, L), generator=rng), torch.randn(B, L, E, generator=rng, dtype=torch.float64)


def reference(head: InductionHead, ids: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors [L, OUT] and additions to logits [L, V] of one text, head by head, place by place, token by token."""
    zero = torch.zeros(E, dtype=text.dtype)
    vectors, logits = torch.zeros(L, OUT, dtype=text.dtype), torch.zeros(L, V, dtype=text.dtype)
    for h in range(head.heads):
        mine = slice(h * SIZE, (h + 1) * SIZE)
        places = []
        for i in range(L):
            before = [text[i - n] if i >= n else zero for n in range(head.context, 0, -1)]
            place = head.read.weight[mine] @ torch.cat(before)
            places.append(place / place.norm().clamp(min=1e-12))
        for i in range(L):
            scores = [head.log_sharpness[h].exp() * (places[i] @ places[j]) for j in range(i)]
            shares = torch.stack([head.nothing[h], *scores]).softmax(0)[1:]
            for j, share in enumerate(shares):
                vectors[i] += (
                    share * output_scale(OUT) * (head.out.weight[:, mine] @ (head.value.weight[mine] @ text[j]))
                )
                logits[i, ids[j]] += share * head.gain[h] * TABLE_SCALE
    return vectors, logits


def run(head: InductionHead, ids: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors [B, L, OUT] and additions to logits [B, L, V]."""
    found = head(ids, embedded).look_up()
    logits = torch.zeros(B * L, V, dtype=torch.float64).scatter_add(1, found.ids, found.boosts)
    return found.vectors.unflatten(0, (B, L)), logits.unflatten(0, (B, L))


@torch.no_grad()
def test_it_is_what_a_loop_over_heads_places_and_tokens_gives() -> None:
    for context, num_heads in ((1, 1), (2, 3), (3, 2)):
        head, (ids, embedded) = make_head(context, num_heads), texts()
        wanted = [reference(head, *text) for text in zip(ids, embedded, strict=True)]
        for ours, theirs in zip(run(head, ids, embedded), zip(*wanted, strict=True), strict=True):
            torch.testing.assert_close(ours, torch.stack(theirs))


@torch.no_grad()
def test_a_token_changes_nothing_up_to_itself() -> None:
    head, (ids, embedded) = make_head(), texts()
    before = run(head, ids, embedded)
    for i in range(L - 1):
        other_ids, other = ids.clone(), embedded.clone()
        other_ids[:, i] = (ids[:, i] + 1) % V
        other[:, i] += 1
        for now, then in zip(run(head, other_ids, other), before, strict=True):
            torch.testing.assert_close(now[:, : i + 1], then[:, : i + 1])
            assert (now[:, i + 1] - then[:, i + 1]).abs().max() > 1e-4


@torch.no_grad()
def test_it_raises_what_came_after_the_same_tokens_before() -> None:
    """With tokens of their own directions and a sharp gaze, one token is called for whole, or none."""
    size = 12
    head = InductionHead(size, OUT, InductionConfig(context=2, num_heads=1, size=2 * size))
    torch.nn.init.eye_(head.read.weight)
    head.log_sharpness.fill_(5.0)
    head.nothing.fill_(0.9 * torch.e**5)
    ids = torch.tensor([[3, 4, 5, 6, 9, 4, 7, 8, 4, 5, 11, 4, 7, 0]])
    found = head(ids, torch.eye(size)[ids]).look_up().boosts / (head.gain * TABLE_SCALE)
    called = {i: int(ids[0, row.argmax()]) for i, row in enumerate(found) if row.max() > 0.5}
    # 4 5 was followed by 6, 4 7 by 8; of 8 4, 9 4 and 11 4 only the 4 is the same.
    assert called == {10: 6, 13: 8}
    torch.testing.assert_close(found[13].max(), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_all_of_it_learns() -> None:
    head, (ids, embedded) = make_head(), texts()
    vectors, logits = run(head, ids, embedded)
    (vectors.square().sum() + logits.square().sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


def test_new_heads_add_no_vectors() -> None:
    ids, embedded = texts()
    assert not InductionHead(E, OUT, InductionConfig(context=3))(ids, embedded.float()).look_up().vectors.any()


def test_autocast_leaves_the_attention_in_float32() -> None:
    ids, embedded = texts()
    head = make_head().float()
    with torch.autocast("cpu", torch.bfloat16):
        attention = head(ids, embedded.float())
    assert all(tensor.dtype == torch.float32 for tensor in attention[:6])
