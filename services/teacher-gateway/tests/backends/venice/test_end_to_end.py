"""Trainer's side to teacher's weights: gRPC, the gateway, HTTP as published, and a real model behind it."""

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status
from transformers import AutoTokenizer

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1.teacher_pb2_grpc import TeacherServiceStub
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.wire import rows_from_proto
from tools.venice_server.control import Fault

MESSAGES = [("system", "You write Python."), ("user", "Add two numbers, é.")]


def chat(**fields: Any) -> pb.GenerateRequest:
    messages = [pb.ChatMessage(role=role, content=content) for role, content in MESSAGES]
    defaults: dict[str, Any] = {
        "max_tokens": 12,
        "temperature": 1.0,
        "seed": 1,
        "top_k": 20,
        "logprob_dtype": pb.LOGPROB_DTYPE_FLOAT32,
    }
    return pb.GenerateRequest(chat=pb.Chat(messages=messages), **(defaults | fields))


@pytest.mark.parametrize("token_bytes", ["exact", "lossy"])
async def test_rows_are_the_teachers_for_the_tokens_they_stand_at(
    run_gateway_on: Any, venice: Any, stdlib_teacher: Path, reference: Any, token_bytes: str
) -> None:
    venice.control.token_bytes = token_bytes
    async with run_gateway_on(venice) as client:
        (answer,) = [answer async for answer in client.generate(chat())]
    prompt, ids = list(answer.prompt_token_ids), list(answer.token_ids)
    theirs = AutoTokenizer.from_pretrained(stdlib_teacher)
    conversation = [{"role": role, "content": content} for role, content in MESSAGES]
    rendered = theirs.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert prompt == theirs(rendered, add_special_tokens=False)["input_ids"]
    assert theirs.decode(ids) == answer.text
    assert len(ids) == 12
    assert answer.finish_reason == pb.FINISH_REASON_LENGTH
    assert (answer.provenance.backend, answer.provenance.engine) == ("venice", "venice api")

    rows = rows_from_proto(answer.rows)
    assert rows.first_position == len(prompt)
    # Row p-1 of the reference is for token p.
    logprobs = reference(stdlib_teacher, [*prompt, *ids])

    def error_at(shift: int) -> float:
        """The largest error of any entry, if row r were for token first_position + r + shift."""
        errors = []
        for row in range(1, len(rows) - 1):
            expected = logprobs[rows.first_position + row + shift - 1]
            count = rows.counts[row]
            errors.append(np.abs(rows.logprobs[row, :count] - expected[rows.ids[row, :count]]).max())
        return float(max(errors))

    assert error_at(0) < 1e-3
    assert min(error_at(-1), error_at(1)) > 1, "the text is too even to tell positions apart"
    for row, token_id in enumerate(ids):
        expected = logprobs[rows.first_position + row - 1]
        assert rows.realised_logprobs[row] == pytest.approx(expected[token_id], abs=1e-3)
        assert rows.realised_ranks[row] in (0, 1 + (expected > expected[token_id]).sum())
        if rows.counts[row] == 20:
            assert set(rows.ids[row]) == set(np.argsort(-expected)[:20])
        assert rows.tail_mass[row] == pytest.approx(
            1 - np.exp(expected[rows.ids[row, : rows.counts[row]]]).sum(), abs=1e-3
        )
    assert rows.unmapped_mass is not None
    if token_bytes == "exact":
        assert rows.counts.min() == 20
        assert not rows.unmapped_mass.any()


async def test_scoring_is_refused_with_what_to_use_instead(run_gateway_on: Any, venice: Any) -> None:
    async with run_gateway_on(venice) as client:
        about = await client.teacher()
        assert not about.can_score
        assert about.chat_prompts_only
        assert about.id_fidelity == pb.ID_FIDELITY_MAPPED
        async with grpc.aio.insecure_channel(client.target) as channel:
            stub = TeacherServiceStub(channel)
            fingerprint = about.tokenizer_fingerprint
            one = pb.ScoreRequest(tokenizer_fingerprint=fingerprint, token_ids=[5, 6], top_k=4)
            many = pb.ScoreBatchRequest(tokenizer_fingerprint=fingerprint, sequences=[pb.TokenIds(ids=[5, 6])], top_k=4)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Score(one)
            with pytest.raises(grpc.aio.AioRpcError) as caught_batch:
                [answer async for answer in stub.ScoreBatch(many)]
    for error in (caught.value, caught_batch.value):
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "call Generate with a chat" in str(error.details())
        assert "embedded, transformers, vllm-local or vllm-remote" in str(error.details())
        info = error_details_pb2.ErrorInfo()
        assert rpc_status.from_call(error).details[0].Unpack(info)  # type: ignore[arg-type]
        assert info.reason == "SCORING_UNSUPPORTED"


async def test_text_and_ids_are_refused_and_what_venice_would_refuse(run_gateway_on: Any, venice: Any) -> None:
    async with run_gateway_on(venice) as client:
        requests = [
            (pb.GenerateRequest(text="a", max_tokens=3), "takes chats only"),
            (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5]), max_tokens=3), "takes chats only"),
            (chat(temperature=2.5), "temperature is 2.5; Venice allows 0 to 2"),
            (chat(top_k=21), "top_k: is 21; allowed are 0 to 20"),
        ]
        for request, words in requests:
            with pytest.raises(TeacherError, match=words) as caught:
                [answer async for answer in client.generate(request)]
            assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert not venice.control.bodies


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, grpc.StatusCode.INVALID_ARGUMENT),
        (401, grpc.StatusCode.FAILED_PRECONDITION),
        (402, grpc.StatusCode.FAILED_PRECONDITION),
        (403, grpc.StatusCode.PERMISSION_DENIED),
        (404, grpc.StatusCode.NOT_FOUND),
        (413, grpc.StatusCode.INVALID_ARGUMENT),
        (415, grpc.StatusCode.INVALID_ARGUMENT),
        (422, grpc.StatusCode.INVALID_ARGUMENT),
        (429, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (500, grpc.StatusCode.UNAVAILABLE),
        (503, grpc.StatusCode.UNAVAILABLE),
        (504, grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
async def test_what_venice_answers_becomes_a_status(
    run_gateway_on: Any, byte_venice: Any, status: int, code: grpc.StatusCode
) -> None:
    async with run_gateway_on(byte_venice, venice_attempts=1) as client:
        byte_venice.control.faults.append(Fault(status, {"message": "because", "type": "x"}, {"retry-after": "7"}))
        async with grpc.aio.insecure_channel(client.target) as channel:
            request = chat()
            request.tokenizer_fingerprint = (await client.teacher()).tokenizer_fingerprint
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                [answer async for answer in TeacherServiceStub(channel).Generate(request)]
    assert caught.value.code() is code
    assert f"answers {status}: because" in str(caught.value.details())
    if status == 429:
        retry = error_details_pb2.RetryInfo()
        details = rpc_status.from_call(caught.value).details  # type: ignore[arg-type]
        assert any(detail.Unpack(retry) for detail in details)
        assert retry.retry_delay.seconds == 7


async def test_a_dropped_continuation_says_why_over_the_wire(run_gateway_on: Any, venice: Any) -> None:
    def contradict(answer: dict[str, Any]) -> None:
        answer["choices"][0]["message"]["content"] += " and more"

    venice.control.edit = contradict
    async with run_gateway_on(venice) as client:
        (answer,) = [answer async for answer in client.generate(chat(max_tokens=2))]
    assert answer.finish_reason == pb.FINISH_REASON_DROPPED
    assert "2 sampled tokens do not make the text" in answer.detail
    assert not answer.token_ids
    assert not answer.HasField("rows")
