import torch
from torch import Tensor

from latentforge.model.config import InductionConfig
from latentforge.model.induction import InductionHead
from latentforge.model.layers import output_scale

B, L, E, OUT, SIZE = 2, 23, 6, 10, 8


def make_head(context: int = 3) -> InductionHead:
    torch.manual_seed(context)
    head = InductionHead(E, OUT, InductionConfig(context=context, size=SIZE)).double()
    torch.nn.init.normal_(head.out.weight)
    with torch.no_grad():
        head.nothing.fill_(0.3)
        head.log_sharpness.fill_(1.1)
    return head


def reference(head: InductionHead, text: Tensor) -> Tensor:
    """One text [L, e], place by place and token by token."""
    zero = torch.zeros(E, dtype=text.dtype)
    found = []
    for i in range(len(text)):
        places = []
        for j in range(i + 1):
            before = [text[j - n] if j >= n else zero for n in range(head.context, 0, -1)]
            place = head.read.weight @ torch.cat(before)
            places.append(place / place.norm().clamp(min=1e-12))
        scores = [head.log_sharpness.exp() * (places[i] @ places[j]) for j in range(i)]
        shares = torch.stack([head.nothing, *scores]).softmax(0)
        value = sum((share * (head.value.weight @ text[j]) for j, share in enumerate(shares[1:])), torch.zeros(SIZE))
        found.append(head.out.weight @ value.double() * output_scale(OUT))
    return torch.stack(found)


def texts() -> Tensor:
    return torch.randn(B, L, E, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def test_it_is_what_a_loop_over_places_and_tokens_gives() -> None:
    for context in (1, 2, 3):
        head = make_head(context)
        wanted = torch.stack([reference(head, text) for text in texts()])
        torch.testing.assert_close(head(texts()), wanted)


@torch.no_grad()
def test_a_token_changes_nothing_up_to_itself() -> None:
    head, text = make_head(), texts()
    found = head(text)
    for i in range(L - 1):
        changed = text.clone()
        changed[:, i] += 1
        now = head(changed)
        torch.testing.assert_close(now[:, : i + 1], found[:, : i + 1])
        assert (now[:, i + 1] - found[:, i + 1]).abs().amin(0).max() > 1e-3


@torch.no_grad()
def test_a_text_that_is_read_piece_by_piece_finds_the_same() -> None:
    head, text = make_head(), texts()
    found = head(text)
    for pieces in ([1] * (L - 1), [0, 5, 1, 1, 9, 6], [L - 1]):
        state, end = head.start(B), 0
        for piece in pieces:
            now = head.advance(state, text[:, end : end + piece])
            end += piece
            torch.testing.assert_close(now, found[:, end])
        assert end == L - 1


@torch.no_grad()
def test_it_raises_what_came_after_the_same_tokens_before() -> None:
    """With tokens of their own directions and a sharp gaze, what is found is the value of one token, or nothing."""
    size = 12
    head = InductionHead(size, size, InductionConfig(context=2, size=2 * size))
    torch.nn.init.eye_(head.read.weight)
    torch.nn.init.eye_(head.value.weight)
    torch.nn.init.eye_(head.out.weight)
    head.log_sharpness.fill_(5.0)
    head.nothing.fill_(0.9 * torch.e**5)
    ids = [3, 4, 5, 6, 9, 4, 7, 8, 4, 5, 11, 4, 7]
    found = head(torch.eye(size)[ids][None])[0] / output_scale(size)
    # 4 5 was followed by 6, 4 7 by 8; of 8 4, 9 4 and 11 4 only the 4 is the same.
    assert [row.argmax().item() if row.max() > 0.5 else None for row in found][-3:] == [6, None, None]
    after = head(torch.eye(size)[[*ids, 0]][None])[0, -1] / output_scale(size)
    assert after.argmax() == 8
    torch.testing.assert_close(after.max(), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_a_new_head_adds_nothing_and_learns() -> None:
    head = InductionHead(E, OUT, InductionConfig(context=3, size=SIZE))
    found = head(texts().float())
    assert not found.any()
    found.sum().backward()
    assert head.out.weight.grad is not None
    assert head.out.weight.grad.any()
