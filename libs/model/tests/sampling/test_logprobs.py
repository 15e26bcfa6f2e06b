import pytest
import torch

from latentforge.model.sampling import logprobs_of


@pytest.mark.parametrize("num", [0, 1, 5, 100])
def test_they_are_of_the_logits_as_they_are(num: int) -> None:
    logits = 4 * torch.randn(20, 3000, generator=torch.Generator().manual_seed(0))
    logits[:, 3] = -torch.inf
    ids = torch.randint(4, 3000, (20,))
    own, top_ids, top = logprobs_of(logits, ids, num)
    wanted = logits.double().log_softmax(1)
    assert torch.allclose(own.double(), wanted.gather(1, ids[:, None])[:, 0], atol=1e-5)
    assert top_ids.equal(wanted.sort(1, descending=True).indices[:, :num])
    assert torch.allclose(top.double(), wanted.gather(1, top_ids), atol=1e-5)
    assert own.dtype == top.dtype == torch.float32


def test_more_than_there_are_are_all() -> None:
    assert logprobs_of(torch.zeros(2, 7), torch.tensor([0, 1]), 50)[1].tolist() == [list(range(7))] * 2
