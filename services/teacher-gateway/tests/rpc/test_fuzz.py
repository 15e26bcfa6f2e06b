"""Whatever is sent, the gateway answers with a status of its own: never an exception, never INTERNAL or UNKNOWN."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentforge.gateway.backends.local.backend import TransformersBackend
from latentforge.gateway.main import Gateway
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher.v1 import teacher_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["TeacherService"]
_VOCABULARY = 300
_FINE = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}
# Up to three continuations of four tokens: what is valid has to be quick.
_MOST_TOKENS, _MOST_CONTINUATIONS = 4, 3

fuzz = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Target:
    """A gateway in a thread of its own, and a channel to it."""

    def __init__(self, channel: grpc.Channel, fingerprint: str) -> None:
        self._channel = channel
        self.fingerprint = fingerprint

    def call(self, method: str, data: bytes) -> grpc.StatusCode:
        """Sends bytes; the status that the call ended with."""
        call = self._channel.unary_stream(f"/{_SERVICE.full_name}/{method}", None, None)(data, timeout=20)
        try:
            for _ in call:
                pass
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK


@pytest.fixture(scope="module")
def target(random_teacher: Path) -> Iterator[Target]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    configured = GatewaySettings(
        embedded_teacher_path=random_teacher, gateway_port=0, cache_url="none", torch_threads=1, max_sequence_length=48
    )
    backend = TransformersBackend(configured, str(random_teacher), "EMBEDDED_TEACHER_PATH", hub=False)
    gateway = Gateway(configured, backend)
    run(gateway.start())
    run(gateway.load())
    with grpc.insecure_channel(f"127.0.0.1:{gateway.port}", options=[("grpc.enable_retries", 0)]) as channel:
        yield Target(channel, backend.tokenizer.fingerprint)
    run(gateway.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


_TEXT = st.text(max_size=20) | st.sampled_from(["", "a", "\x00", "é" * 400, "\U0001f980", "<|im_end|>", "‮"])
_ID = st.integers(0, _VOCABULARY - 1) | st.sampled_from([_VOCABULARY - 1, _VOCABULARY, 2**31, 2**32 - 1])
_FLOAT = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1e-38, 0.5, 1.0, 100.0])
_NUMBER = st.integers(0, 70) | st.sampled_from([2**31 - 1, 2**31, 2**32 - 1])
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: _TEXT,
    FieldDescriptor.TYPE_FLOAT: _FLOAT,
    FieldDescriptor.TYPE_UINT32: _NUMBER,
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_ENUM: st.sampled_from([0, 1, 2, 3, -1, 2**31 - 1, -(2**31)]),
}


_GOOD: dict[Any, Callable[[str], Any]] = {
    pb.ScoreRequest: lambda f: pb.ScoreRequest(tokenizer_fingerprint=f, token_ids=[9, 8, 7], top_k=3),
    pb.ScoreBatchRequest: lambda f: pb.ScoreBatchRequest(
        tokenizer_fingerprint=f, sequences=[pb.TokenIds(ids=[9, 8]), pb.TokenIds(ids=[7, 6, 5])], top_k=3
    ),
    pb.GenerateRequest: lambda f: pb.GenerateRequest(
        tokenizer_fingerprint=f, text="ab", max_tokens=_MOST_TOKENS, temperature=1, top_k=2
    ),
    pb.DetokenizeRequest: lambda f: pb.DetokenizeRequest(tokenizer_fingerprint=f, token_ids=[70, 80]),
}


def values(field: FieldDescriptor, fingerprint: str) -> st.SearchStrategy[Any]:
    """Any value of a field, good ones often enough that requests get past the first check."""
    if field.message_type is not None:
        one: st.SearchStrategy[Any] = messages(GetMessageClass(field.message_type), fingerprint)
    elif field.name == "tokenizer_fingerprint":
        one = st.just(fingerprint) | _TEXT
    elif field.name in ("ids", "token_ids"):
        one = _ID
    elif field.name == "role":
        one = st.sampled_from(["user", "system", "assistant"]) | _TEXT
    elif field.name == "max_tokens":
        one = st.integers(0, _MOST_TOKENS) | st.sampled_from([1000, 2**32 - 1])
    elif field.name == "n":
        one = st.integers(0, _MOST_CONTINUATIONS) | st.sampled_from([65, 2**32 - 1])
    else:
        one = _SCALARS[field.type]
    if field.is_repeated:
        return st.lists(one, max_size=6) | one.flatmap(lambda value: st.integers(45, 50).map(lambda n: [value] * n))
    return one


@st.composite
def messages(draw: Callable[[Any], Any], kind: Any, fingerprint: str) -> Any:
    """A message with any of its fields set to anything, or a good one with up to two of them changed.

    Of a oneof the field that is set last counts.
    """
    fields = list(kind.DESCRIPTOR.fields)
    message = kind()
    if kind in _GOOD and draw(st.integers(0, 2)):
        message.CopyFrom(_GOOD[kind](fingerprint))
        fields = draw(st.lists(st.sampled_from(fields), max_size=2, unique_by=lambda field: field.name))
    for field in fields:
        if field.is_repeated and draw(st.booleans()):
            message.ClearField(field.name)
        value = draw(values(field, fingerprint))
        if field.is_repeated:
            getattr(message, field.name).extend(value)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(value)
        else:
            setattr(message, field.name, value)
    return message


@pytest.mark.parametrize(
    ("method", "examples"),
    [("Score", 90), ("ScoreBatch", 70), ("Generate", 120), ("Tokenize", 40), ("Detokenize", 40), ("GetTeacher", 5)],
)
def test_any_message_has_an_answer(
    target: Target, caplog: pytest.LogCaptureFixture, method: str, examples: int
) -> None:
    kind = GetMessageClass(_SERVICE.methods_by_name[method].input_type)
    ended: set[grpc.StatusCode] = set()

    @settings(fuzz, max_examples=examples)
    @given(messages(kind, target.fingerprint))
    def run(message: Any) -> None:
        code = target.call(method, message.SerializeToString())
        ended.add(code)
        assert code in _FINE, message

    run()
    assert grpc.StatusCode.OK in ended
    assert method == "GetTeacher" or grpc.StatusCode.INVALID_ARGUMENT in ended
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@settings(fuzz, max_examples=150)
@given(method=st.sampled_from([m.name for m in _SERVICE.methods]), data=st.binary(max_size=64))
def test_any_bytes_have_an_answer(target: Target, caplog: pytest.LogCaptureFixture, method: str, data: bytes) -> None:
    assert target.call(method, data) in _FINE
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@settings(fuzz, max_examples=80)
@given(data=st.data())
def test_bytes_near_a_message_have_an_answer(
    target: Target, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    method = data.draw(st.sampled_from([m for m in _SERVICE.methods if m.name not in ("GetTeacher", "GetCacheStats")]))
    message = data.draw(messages(GetMessageClass(method.input_type), target.fingerprint))
    sent = bytearray(message.SerializeToString())
    for at in data.draw(st.lists(st.integers(0, max(0, len(sent) - 1)), max_size=3)):
        if sent:
            sent[at] = data.draw(st.integers(0, 255))
    assert target.call(method.name, bytes(sent)) in _FINE
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_text_with_a_lone_surrogate_is_no_message(target: Target) -> None:
    data = pb.TokenizeRequest(text="ab").SerializeToString().replace(b"ab", b"\xed\xa0\x80"[:2])
    assert target.call("Tokenize", data) is grpc.StatusCode.INVALID_ARGUMENT
