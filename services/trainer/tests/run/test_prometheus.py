import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from latentforge.core.metrics import exposition
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.run.prometheus import registry_of
from latentforge.trainer.run.status import Status
from latentforge.trainer.run.status_server import StatusServer
from latentforge.trainer.training.student import train_student


def scraped(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def one(family: Metric, **labels: str) -> float:
    (value,) = [s.value for s in family.samples if labels.items() <= s.labels.items()]
    return float(value)


def test_a_real_run_is_scraped_while_it_trains_and_after(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    run = make_run(port=known_teacher.port)
    server = StatusServer(run.status, "127.0.0.1", 0)
    url, scrapes, over = f"http://127.0.0.1:{server.port}/metrics", [], threading.Event()

    def scrape() -> None:
        while not over.is_set():
            scrapes.append(httpx.get(url).raise_for_status())
            over.wait(0.02)

    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        result = train_student(run, *split_tail(packed), autoencoder)
    finally:
        over.set()
        scraper.join()
    last = httpx.get(url)
    server.close()
    assert last.headers["content-type"].startswith("text/plain; version=")
    steps = [one(f["trainer_step"]) for r in scrapes if (f := scraped(r.text))["trainer_step"].samples]
    assert steps == sorted(steps)
    assert len(set(steps)) > 2
    found = scraped(last.text)
    assert one(found["trainer_step"], run="tiny", stage="student") == result.steps
    assert one(found["trainer_steps"]) == result.steps
    assert one(found["trainer_eta_seconds"]) == one(found["trainer_run_eta_seconds"]) == 0
    assert one(found["trainer_loss"], term="ce") == run.status.losses["ce"]
    assert one(found["trainer_held_out"], figure="kd") == pytest.approx(result.curve[-1].kd)
    assert one(found["trainer_tokens"], stage="student") == result.steps * 2 * 32
    assert one(found["trainer_tokens_per_second"]) > 0
    assert one(found["trainer_teacher_wait_seconds"]) > 0
    assert result.cache is not None
    assert one(found["trainer_teacher_sequences"], source="cache") == result.cache.hits
    assert one(found["trainer_teacher_sequences"], source="teacher") == result.cache.misses
    assert one(found["trainer_teacher_rows"], source="cache") == result.cache.rows_from_cache
    assert one(found["trainer_checkpoints_published"]) == len(result.checkpoints)
    assert one(found["process_resident_memory_bytes"]) > 2**20
    assert one(found["trainer_done"]) == 0


def test_incidents_and_failure_are_counted_and_what_is_not_finite_is_left_out() -> None:
    status = Status("r", stage="student", eta=float("inf"), run_eta=60.0, losses={"ce": float("nan"), "kd": 1.0})
    status.count("rewinds")
    status.count("failed_sequences", 3)
    status.error = "the loss is not finite"
    status.teacher_rows = {"sequences": 10, "hits": 4, "rows": 100, "rows_from_cache": 30}
    found = scraped(exposition(registry_of(status)).decode())
    assert one(found["trainer_incidents"], kind="rewinds") == 1
    assert one(found["trainer_incidents"], kind="failed_sequences") == 3
    assert one(found["trainer_failed"]) == 1
    assert [s.labels["term"] for s in found["trainer_loss"].samples] == ["kd"]
    assert found["trainer_eta_seconds"].samples == []
    assert one(found["trainer_run_eta_seconds"]) == 60
    # A student without a teacher.
    assert found["trainer_teacher_wait_seconds"].samples == []
    rows, sequences = found["trainer_teacher_rows"], found["trainer_teacher_sequences"]
    assert (one(rows, source="cache"), one(rows, source="teacher")) == (30, 70)
    assert (one(sequences, source="cache"), one(sequences, source="teacher")) == (4, 6)
    alone = scraped(exposition(registry_of(Status("alone"))).decode())
    assert alone["trainer_teacher_rows"].samples == []
