import platform
from importlib.metadata import version

from latentforge.gateway.breaker import Breaker
from latentforge.gateway.metrics import Metrics


def test_every_metric_of_the_gateways_own_has_its_prefix() -> None:
    names = {family.name for family in Metrics().registry.collect()}
    assert {name for name in names if not name.startswith(("process_", "python_"))} == {
        name for name in names if name.startswith("gateway_")
    }


def test_changes_of_a_breaker_are_counted_and_its_state_is_shown() -> None:
    metrics, now = Metrics(), [0.0]
    value = metrics.registry.get_sample_value
    breaker = Breaker(2, 30.0, 30.0, on_change=metrics.breaker("teacher"), clock=lambda: now[0])

    def seen() -> tuple[float | None, ...]:
        changes = (value("gateway_breaker_changes_total", {"name": "teacher", "to": to}) for to in ("open", "closed"))
        return value("gateway_breaker_open", {"name": "teacher"}), *changes

    assert seen() == (0, 0, 0)
    for _ in range(2):
        breaker.failed()
    assert seen() == (1, 1, 0)
    now[0] = 31
    assert breaker.allows()
    breaker.succeeded()
    assert seen() == (0, 1, 1)


def test_what_runs_is_a_metric() -> None:
    labels = {"version": version("latentforge-teacher-gateway"), "python": platform.python_version()}
    assert Metrics().registry.get_sample_value("gateway_build_info", labels) == 1
