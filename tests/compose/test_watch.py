"""What Prometheus scrapes and the dashboard shows, read without an engine."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from latentforge.core.metrics import exposition
from latentforge.gateway.metrics import Metrics
from latentforge.inference.operation.metrics import InferenceMetrics
from latentforge.trainer.run.prometheus import registry_of
from latentforge.trainer.run.status import Status
from tools.demo.settings import ROOT

_COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
_GB10 = yaml.safe_load((ROOT / "docker-compose.gb10.yml").read_text(encoding="utf-8").replace("!override", ""))
_GRAFANA = ROOT / "compose" / "grafana"
# Of a GPU that has been used.
_ELSEWHERE = {"trainer_gpu_memory_bytes"}


def families(registry: CollectorRegistry) -> set[str]:
    found: set[str] = set()
    for family in text_string_to_metric_families(exposition(registry).decode()):
        found |= {family.name, f"{family.name}_total"} if family.type == "counter" else {family.name}
    return found


def test_each_expression_asks_for_metrics_that_a_service_gives() -> None:
    known = families(registry_of(Status("r"))) | families(Metrics().registry) | families(InferenceMetrics().registry)
    dashboard = json.loads((_GRAFANA / "dashboards" / "latentforge.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 12
    for expression in expressions:
        asked = set(re.findall(r"\b(?:trainer|gateway|inference|process)_[a-z_]+", expression))
        assert asked, expression
        assert asked <= known | _ELSEWHERE, expression
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_each_target_is_a_service_that_listens_there() -> None:
    config = yaml.safe_load((ROOT / "compose" / "prometheus.yml").read_text(encoding="utf-8"))
    jobs: dict[str, Any] = {job["job_name"]: job["dns_sd_configs"][0] for job in config["scrape_configs"]}
    assert set(jobs) == {"trainer", "teacher-gateway", "inference"}
    for job, names in jobs.items():
        assert set(names["names"]) <= _COMPOSE["services"].keys() | _GB10["services"].keys()
        assert job in names["names"]
    services = _COMPOSE["services"]
    assert f"--status-port {jobs['trainer']['port']}" in services["trainer"]["command"]
    assert services["teacher-gateway"]["environment"]["GATEWAY_METRICS_PORT"] == jobs["teacher-gateway"]["port"]
    assert services["inference"]["environment"]["INFERENCE_PORT"] == jobs["inference"]["port"]


def test_what_is_mounted_is_there_and_the_default_stack_is_as_it_was() -> None:
    for name in ("prometheus", "grafana"):
        service = _COMPOSE["services"][name]
        assert service["profiles"] == ["watch"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if source.startswith("./") else source in _COMPOSE["volumes"]


@pytest.mark.parametrize("path", sorted(_GRAFANA.rglob("*.yml")), ids=lambda path: path.stem)
def test_grafana_is_pointed_to_prometheus_and_the_dashboards(path: Path) -> None:
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    for source in said.get("datasources", []):
        assert source["url"] == "http://prometheus:9090"
        assert '"uid": "prometheus"' in (_GRAFANA / "dashboards" / "latentforge.json").read_text(encoding="utf-8")
    for provider in said.get("providers", []):
        mounted = [volume.split(":")[1] for volume in _COMPOSE["services"]["grafana"]["volumes"]]
        assert provider["options"]["path"] in mounted
