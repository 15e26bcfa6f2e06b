import pytest
from pydantic import TypeAdapter, ValidationError

from latentforge.core.devices import DeviceName, choose_device
from latentforge.core.settings import SettingsError


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:11"])
def test_names_of_devices_are_taken(name: str) -> None:
    assert TypeAdapter(DeviceName).validate_python(name) == name


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "mps", ""])
def test_other_names_are_refused_with_those_that_are_taken(name: str) -> None:
    with pytest.raises(ValidationError, match="use auto, cpu, cuda or cuda:N"):
        TypeAdapter(DeviceName).validate_python(name)


@pytest.mark.parametrize(
    ("name", "num_cuda_devices", "device"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_auto_takes_cuda_where_there_is_some(name: str, num_cuda_devices: int, device: str) -> None:
    assert choose_device("X", name, num_cuda_devices) == device


def test_a_device_that_is_not_there_is_refused_with_the_setting_and_what_there_is() -> None:
    for name in ("cuda", "cuda:0"):
        with pytest.raises(SettingsError, match=f"TEACHER_DEVICE is '{name}', but of CUDA devices torch finds none"):
            choose_device("TEACHER_DEVICE", name, 0)
    with pytest.raises(SettingsError, match="device is 'cuda:2', but of CUDA devices torch finds 2, from cuda:0 on"):
        choose_device("device", "cuda:2", 2)
