import threading

import pytest
import torch

from latentforge.vllm.refresher import Refresher


def test_even_the_first_look_is_outside_the_inference_mode_of_whoever_starts_it() -> None:
    modes: list[bool] = []
    refresher = Refresher(lambda: modes.append(torch.is_inference_mode_enabled()), 0.01)
    with torch.inference_mode():
        refresher.start()
        refresher.close()
    assert modes == [False]


def test_the_first_look_raises_where_it_is_waited_for() -> None:
    def fail() -> None:
        raise OSError("no folder")

    refresher = Refresher(fail, 0.01)
    with pytest.raises(OSError, match="no folder"):
        refresher.start()
    refresher.close()


def test_a_later_look_that_fails_is_logged_and_another_follows(caplog: pytest.LogCaptureFixture) -> None:
    looks, enough = [0], threading.Event()

    def look() -> None:
        looks[0] += 1
        if looks[0] == 2:
            raise RuntimeError("the folder is away")
        if looks[0] == 4:
            enough.set()

    refresher = Refresher(look, 0.01)
    refresher.start()
    assert looks == [1]
    refresher.go_on()
    assert enough.wait(30)
    refresher.close()
    assert [r.getMessage() for r in caplog.records] == ["the checkpoints folder could not be looked at; trying again"]
