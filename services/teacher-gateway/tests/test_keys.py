"""Clients with keys of their own: names, shares and quotas, from the settings to the answers."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.keys import KeyRefusedError, load_keys
from latentforge.gateway.main import Gateway
from latentforge.gateway.scoring.callers import current_caller
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1.teacher_pb2_grpc import TeacherServiceStub
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.errors import TeacherError

TRAINER, EVALUATION = "trainers-s3cret", "evaluations-s3cret"
FILE = f"""
[[key]]
name = "trainer"
sha256 = "{hashlib.sha256(TRAINER.encode()).hexdigest()}"
share = 2.5

[[key]]
name = "evaluation"
key = "{EVALUATION}"
tokens_per_minute = 100
"""


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway_keys.toml"
    path.write_text(FILE)
    return path


def test_a_key_gives_its_name_share_and_quota(make_settings: Callable[..., Any], keys_file: Path) -> None:
    keys = load_keys(make_settings(gateway_keys_file=keys_file, gateway_api_key="everybodys"))
    trainer, evaluation = (keys.caller(f"Bearer {key}", "ipv4:1") for key in (TRAINER, EVALUATION))
    assert (trainer.name, trainer.share, trainer.quota, trainer.named) == ("trainer", 2.5, None, True)
    assert evaluation.quota is not None
    assert (evaluation.name, evaluation.quota.tokens_per_minute) == ("evaluation", 100)
    # One quota, however often the key is sent.
    assert keys.caller(f"bearer {EVALUATION}", "ipv4:2") is evaluation
    everybody = keys.caller("Bearer everybodys", "ipv4:1")
    assert (everybody.name, everybody.named) == ("ipv4:1", False)
    for authorization in (None, "Bearer other", f"Basic {TRAINER}", TRAINER, "Bearer "):
        with pytest.raises(KeyRefusedError):
            keys.caller(authorization, "ipv4:1")


def test_without_keys_callers_are_told_apart_by_connection(make_settings: Callable[..., Any]) -> None:
    keys = load_keys(make_settings())
    assert not keys.needed
    assert {keys.caller(None, name).name for name in ("ipv4:1", "ipv4:2")} == {"ipv4:1", "ipv4:2"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        ("trainer: s3cret", r"is not TOML; write \[\[key\]\]"),
        ("", "key is missing"),
        ("key = []", "key: List should have at least 1 item"),
        ('[[key]]\nname = "a"', r"key\.0: needs one of sha256 and key"),
        ('[[key]]\nname = "a b"\nkey = "s3cret"', r"key\.0\.name"),
        ('[[key]]\nname = "a"\nkey = "s3cret with space"', r"key\.0\.key: use printable ASCII"),
        ('[[key]]\nname = "a"\nsha256 = "s3cret"', r"key\.0\.sha256"),
        ('[[key]]\nname = "a"\nkey = "s3cret"\nshare = 0', r"key\.0\.share: .*0\.001"),
        ('[[key]]\nname = "a"\nkey = "s3cret"\ntokens_per_minute = 0', r"key\.0\.tokens_per_minute"),
        ('[[key]]\nname = "a"\nkey = "s3cret"\nqouta = 1', r"key\.0 has an unknown field; .*tokens_per_minute"),
        # The key where a field's name belongs.
        (
            '[[key]]\nname = "a"\nkey = "b"\ns3cret = true\ns3cret2 = 1',
            r"key\.0 has an unknown field; allowed are name,",
        ),
        ('s3cret = {name = "a"}', "key is missing; the top level has an unknown field; allowed is key"),
        ('[[key]]\nname = "a"\nkey = "b"\n[[s3cret]]\nname = "a"', "the top level has an unknown field"),
        ('[key]\ns3cret = "a"', "key: Input should be a valid list"),
        ('[[key]]\nname = "a"\nkey = "s3cret"\n[[key]]\nname = "a"\nkey = "s3cret2"', "two keys of the name 'a'"),
        ('[[key]]\nname = "a"\nkey = "s3cret"\n[[key]]\nname = "b"\nkey = "s3cret"', "one key for 'a' and 'b'"),
    ],
)
def test_a_wrong_file_is_named_before_anything_starts_and_no_key_is_shown(
    make_settings: Callable[..., Any], tmp_path: Path, content: str | None, words: str
) -> None:
    path = tmp_path / "keys.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=f"GATEWAY_KEYS_FILE={path}.*{words}") as caught:
        Gateway(make_settings(gateway_keys_file=path))
    assert "s3cret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


async def test_the_teacher_works_for_whom_the_key_names(run_gateway: Any, keys_file: Path) -> None:
    async with run_gateway(gateway_keys_file=keys_file) as running:
        inner, seen = running.backend.inner, []
        plain = inner.score

        async def score(sequences: Any, top_k: int) -> Any:
            seen.append(current_caller().name)
            return await plain(sequences, top_k)

        inner.score = score
        for key in (TRAINER, EVALUATION):
            async with TeacherClient(running.target, timeout=10, api_key=key) as client:
                assert len(await client.score([1, 2, 3, len(key)], 4)) == 3
        assert seen == ["trainer", "evaluation"]
        with pytest.raises(TeacherError, match="no key was sent"):
            await running.client.teacher()


async def test_beyond_a_quota_a_call_is_told_when_to_come_back_and_others_are_not(
    run_gateway: Any, keys_file: Path
) -> None:
    async with run_gateway(gateway_keys_file=keys_file) as running:
        fingerprint = running.backend.tokenizer.fingerprint
        metadata = [("authorization", f"Bearer {EVALUATION}")]

        def batch(first: int) -> pb.ScoreBatchRequest:
            ids = [pb.TokenIds(ids=[first, second, *range(48)]) for second in range(8)]
            return pb.ScoreBatchRequest(tokenizer_fingerprint=fingerprint, sequences=ids, top_k=2)

        async with grpc.aio.insecure_channel(running.target) as channel:
            stub = TeacherServiceStub(channel)
            assert len([a async for a in stub.ScoreBatch(batch(1), metadata=metadata)]) == 8
            generate = pb.GenerateRequest(tokenizer_fingerprint=fingerprint, text="a", max_tokens=2)
            for call in (
                stub.ScoreBatch(batch(2), metadata=metadata).read(),
                stub.Score(
                    pb.ScoreRequest(tokenizer_fingerprint=fingerprint, token_ids=[1, 2], top_k=2), metadata=metadata
                ),
                stub.Generate(generate, metadata=metadata).read(),
            ):
                with pytest.raises(grpc.aio.AioRpcError, match="the quota of 100 tokens a minute is used") as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
                retry, info = error_details_pb2.RetryInfo(), error_details_pb2.ErrorInfo()
                assert any(detail.Unpack(retry) for detail in status.details)
                assert any(detail.Unpack(info) for detail in status.details)
                assert info.reason == "QUOTA_EXCEEDED"
                # 400 tokens were used of 100.
                assert 170 < retry.retry_delay.seconds <= 181
        async with TeacherClient(running.target, timeout=10, api_key=TRAINER) as client:
            assert len(await client.score(list(range(200)), 4)) == 199
        value = running.gateway.metrics.registry.get_sample_value
        assert value("gateway_key_tokens_total", {"key": "evaluation"}) == 400
        assert value("gateway_key_tokens_total", {"key": "trainer"}) == 200
        assert value("gateway_key_refusals_total", {"key": "evaluation"}) == 3


@pytest.mark.parametrize("second", ["Bearer x", f"Bearer {TRAINER}", ""])
async def test_the_key_that_opens_is_the_one_whose_quota_counts(run_gateway: Any, keys_file: Path, second: str) -> None:
    async with run_gateway(gateway_keys_file=keys_file) as running:
        metadata = [("authorization", f"Bearer {EVALUATION}"), ("authorization", second)]
        fingerprint = running.backend.tokenizer.fingerprint

        def request(first: int) -> pb.ScoreRequest:
            return pb.ScoreRequest(tokenizer_fingerprint=fingerprint, token_ids=[first, *range(199)], top_k=2)

        async with grpc.aio.insecure_channel(running.target) as channel:
            stub = TeacherServiceStub(channel)
            await stub.Score(request(1), metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError, match="the quota of 100 tokens a minute is used"):
                await stub.Score(request(2), metadata=metadata)
        value = running.gateway.metrics.registry.get_sample_value
        assert value("gateway_key_tokens_total", {"key": "evaluation"}) == 200
        assert not value("gateway_key_tokens_total", {"key": "trainer"})


async def test_what_the_cache_answers_uses_nothing_of_a_quota(run_gateway: Any, keys_file: Path) -> None:
    async with run_gateway(gateway_keys_file=keys_file) as running:
        async with TeacherClient(running.target, timeout=10, api_key=TRAINER) as client:
            await client.score(list(range(90)), 4)
        async with TeacherClient(running.target, timeout=10, api_key=EVALUATION) as client:
            for _ in range(3):
                await client.score(list(range(90)), 4)
                assert [a.error async for a in client.score_batch([list(range(90))], 4)] == [None]
        assert running.gateway.metrics.registry.get_sample_value("gateway_key_tokens_total", {"key": "evaluation"}) == 0


async def test_what_a_batch_asks_for_twice_is_computed_and_charged_once(run_gateway: Any, keys_file: Path) -> None:
    async with run_gateway(gateway_keys_file=keys_file, cache_url="none") as running:
        async with TeacherClient(running.target, timeout=10, api_key=TRAINER) as client:
            answers = [a async for a in client.score_batch([[7] * 20, *([5] * 30 for _ in range(40))], 4)]
        assert [a.error for a in answers] == [None] * 41
        assert sum(len(ids) for batch in running.backend.scored for ids in batch) == 50
        assert running.gateway.metrics.registry.get_sample_value("gateway_key_tokens_total", {"key": "trainer"}) == 50


async def test_a_prompt_is_charged_when_the_teacher_has_begun_to_continue_it(
    run_gateway: Any, keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_gateway(gateway_keys_file=keys_file) as running:

        def used() -> Any:
            return running.gateway.metrics.registry.get_sample_value("gateway_key_tokens_total", {"key": "trainer"})

        async def gone(request: Any) -> Any:
            raise BackendError("cannot be reached", FailureKind.GONE)
            yield

        request = pb.GenerateRequest(
            tokenizer_fingerprint=running.backend.tokenizer.fingerprint,
            token_ids=pb.TokenIds(ids=list(range(10, 30))),
            max_tokens=3,
            n=2,
        )
        metadata = [("authorization", f"Bearer {TRAINER}")]
        async with grpc.aio.insecure_channel(running.target) as channel:
            generate = TeacherServiceStub(channel).Generate
            with monkeypatch.context() as patch:
                patch.setattr(running.backend, "generate", gone)
                with pytest.raises(grpc.aio.AioRpcError, match="cannot be reached"):
                    await generate(request, metadata=metadata).read()
            assert used() == 0
            pieces = [piece async for piece in generate(request, metadata=metadata)]
        assert used() == 2 * 20 + sum(len(piece.token_ids) for piece in pieces)
