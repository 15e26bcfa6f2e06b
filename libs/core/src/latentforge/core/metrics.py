"""What every service's Prometheus metrics have in common."""

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST


def new_registry() -> CollectorRegistry:
    """A registry of a service's own, with the process's memory, CPU time and open files in it."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry) -> bytes:
    """All that a registry holds, in Prometheus's text format (:data:`CONTENT_TYPE`)."""
    return generate_latest(registry)
