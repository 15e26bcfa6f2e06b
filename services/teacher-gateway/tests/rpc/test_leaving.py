"""Callers whose process or machine is gone: their calls are cancelled, which is no failure of the gateway's."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

# Reads one answer of many and no more, until it is killed.
CLIENT = """
import sys, time, grpc
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1.teacher_pb2_grpc import TeacherServiceStub

target, fingerprint = sys.argv[1:]
stub = TeacherServiceStub(grpc.insecure_channel(target))
sequences = [pb.TokenIds(ids=[j % 300, j // 300, *range(100)]) for j in range(400)]
answers = stub.ScoreBatch(pb.ScoreBatchRequest(tokenizer_fingerprint=fingerprint, sequences=sequences, top_k=64))
next(answers)
time.sleep(600)
"""


async def test_a_client_that_is_killed_in_the_middle_of_an_answer_has_cancelled_it(
    running: Any, eventually: Callable[[Callable[[], bool]], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    value = running.gateway.metrics.registry.get_sample_value
    fingerprint = running.backend.tokenizer.fingerprint
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", CLIENT, running.target, fingerprint)
    # By then more is computed than the connection takes unread, so an answer is being written.
    await eventually(lambda: (value("gateway_rows_total", {"source": "teacher"}) or 0) > 250 * 101)
    process.kill()
    await process.wait()
    await eventually(lambda: value("gateway_in_flight") == 0)
    assert value("gateway_requests_total", {"method": "ScoreBatch", "code": "CANCELLED"}) == 1
    assert value("gateway_requests_total", {"method": "ScoreBatch", "code": "INTERNAL"}) is None
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    # And the gateway serves on.
    assert len(await running.client.score([1, 2, 3], 3)) == 2
