import re
from pathlib import Path

import pytest

from tools.dependencies import ROOT, needed_packages, outside_dependencies

_SERVICES = ("teacher-gateway", "trainer", "inference")


def _package(root: Path, folder: str, name: str, *dependencies: str) -> None:
    (root / folder).mkdir(parents=True)
    listed = ", ".join(f'"{d}"' for d in dependencies)
    (root / folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\ndependencies = [{listed}]\n')


def test_dependencies_of_our_own_packages_are_followed(tmp_path: Path) -> None:
    _package(tmp_path, "proto", "latentforge-proto", "grpcio")
    _package(tmp_path, "libs/core", "latentforge-core", "latentforge-proto", "numpy>=2")
    _package(tmp_path, "services/one", "latentforge-one", "latentforge-core", "typer[all]")
    _package(tmp_path, "services/two", "latentforge-two", "torch")
    assert outside_dependencies(tmp_path / "services/one", tmp_path) == ["grpcio", "numpy>=2", "typer[all]"]


def test_everything_that_a_service_installs_is_pinned() -> None:
    pins = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for service in _SERVICES:
        wanted = {d.lower().replace("_", "-") for d in outside_dependencies(ROOT / "services" / service)}
        assert wanted <= {pin.replace("_", "-") for pin in pins}, service


def test_no_service_depends_on_another() -> None:
    for service in _SERVICES:
        text = (ROOT / "services" / service / "pyproject.toml").read_text()
        others = [f'"latentforge-{other}"' for other in _SERVICES if other != service]
        assert not any(other in text.partition("dependencies")[2].splitlines()[0] for other in others)


@pytest.mark.parametrize("service", _SERVICES)
def test_an_image_installs_exactly_our_packages_that_its_service_needs(service: str) -> None:
    folder = ROOT / "services" / service
    needed = {place.relative_to(ROOT).as_posix() for place in needed_packages(folder)}
    text = (folder / "Dockerfile").read_text()
    assert set(re.findall(r" \./(\S+)", text[text.index("--no-deps") :].partition("\n")[0])) == needed
    # What tools/dependencies.py reads there.
    assert set(re.findall(r"^COPY (\S+)/pyproject\.toml ", text, re.MULTILINE)) == needed
