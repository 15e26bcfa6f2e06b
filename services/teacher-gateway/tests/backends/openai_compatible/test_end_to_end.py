"""Caller's side to a server's: gRPC, the gateway, HTTP as published, and a real model behind it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from latentforge.gateway.cli import app
from latentforge.gateway.main import Gateway
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.wire import rows_from_proto

RunOn = Callable[[str], AbstractAsyncContextManager[TeacherClient]]


@pytest.fixture
def run_on(make_settings: Callable[..., GatewaySettings], random_teacher: Path) -> RunOn:
    """A gateway whose teacher is the server at a URL; gives its client."""

    @asynccontextmanager
    async def run(url: str) -> AsyncIterator[TeacherClient]:
        settings = make_settings(
            teacher_backend="openai-compatible", openai_compatible_url=url, tokenizer_path=random_teacher
        )
        gateway = Gateway(settings)
        await gateway.start()
        try:
            await gateway.load()
            async with TeacherClient(f"127.0.0.1:{gateway.port}", timeout=60) as client:
                yield client
        finally:
            await gateway.stop()

    return run


async def test_rows_of_a_served_teacher_are_cached(serve: Any, run_on: RunOn) -> None:
    stand_in, url = serve("sglang")
    ids = [70, 200, 299, 71, 72, 5]
    async with run_on(url) as client:
        first = await client.score(ids, top_k=6)
        asked = len(stand_in.asked)
        again = await client.score(ids, top_k=4)
        assert len(stand_in.asked) == asked
        np.testing.assert_array_equal(again.ids, first.ids[:, :4])
        expected = stand_in.logprobs(ids)[:-1]
        np.testing.assert_array_equal(first.ids[:, 0], expected.argmax(1))


async def test_a_server_that_cannot_score_says_so_and_continues_text(serve: Any, run_on: RunOn) -> None:
    stand_in, url = serve("llamacpp")
    async with run_on(url) as client:
        with pytest.raises(TeacherError, match="the openai-compatible backend cannot score given tokens") as caught:
            await client.score([70, 71, 72], top_k=4)
        assert caught.value.code.name == "UNIMPLEMENTED"
        asked = pb.GenerateRequest(text="ab", max_tokens=4, temperature=1.0, seed=2, top_k=3)
        asked.logprob_dtype = pb.LOGPROB_DTYPE_FLOAT32
        (answer,) = [answer async for answer in client.generate(asked)]
        whole = [*answer.prompt_token_ids, *answer.token_ids]
        rows = rows_from_proto(answer.rows)
        expected = stand_in.logprobs(whole)[len(answer.prompt_token_ids) - 1 : -1]
        np.testing.assert_allclose(rows.logprobs, -np.sort(-expected, axis=1)[:, :3], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "last"),
    [("sglang", "ok    test 2: scored "), ("llamacpp", "ok    test 2: it cannot score; a continuation of ")],
)
def test_check_says_what_the_server_can(
    serve: Any, random_teacher: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, last: str
) -> None:
    _, url = serve(kind)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEACHER_BACKEND", "openai-compatible")
    shown = CliRunner().invoke(app, ["check"]).output.splitlines()
    assert [line.split(" is not set")[0] for line in shown] == ["FAIL  OPENAI_COMPATIBLE_URL", "FAIL  TOKENIZER_PATH"]
    monkeypatch.setenv("OPENAI_COMPATIBLE_URL", url)
    monkeypatch.setenv("TOKENIZER_PATH", str(random_teacher))
    result = CliRunner().invoke(app, ["check"])
    lines = result.output.splitlines()
    assert result.exit_code == 0, lines
    assert lines[0] == f"ok    test 1: {url} serves tiny"
    assert lines[1].startswith("ok    test 1: openai-compatible teacher tiny, revision ")
    assert lines[-1].startswith(last)
