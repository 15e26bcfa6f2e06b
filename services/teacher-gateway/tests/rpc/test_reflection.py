"""What grpcurl does: list, describe and call, knowing nothing but what reflection tells."""

from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from latentforge.gateway.rpc.interceptor import SERVICE


class ReflectedChannel:
    """Calls methods with JSON; types come from the server's reflection, into a pool of their own."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        self._pool = descriptor_pool.DescriptorPool()

    async def _ask(self, **request: str) -> Any:
        requests = [reflection_pb2.ServerReflectionRequest(**request)]
        (answer,) = [a async for a in self._reflection.ServerReflectionInfo(iter(requests))]
        assert not answer.HasField("error_response"), answer
        return answer

    async def services(self) -> set[str]:
        answer = await self._ask(list_services="")
        return {service.name for service in answer.list_services_response.service}

    async def describe(self, symbol: str) -> Any:
        """The descriptor of a service, with every file that it needs."""
        answer = await self._ask(file_containing_symbol=symbol)
        await self._add(answer.file_descriptor_response.file_descriptor_proto)
        return self._pool.FindServiceByName(symbol)

    async def _add(self, files: Sequence[bytes]) -> None:
        given = [descriptor_pb2.FileDescriptorProto.FromString(file) for file in files]
        names = {file.name for file in given}
        for file in given:
            for dependency in file.dependency:
                try:
                    self._pool.FindFileByName(dependency)
                except KeyError:
                    if dependency not in names:
                        answer = await self._ask(file_by_filename=dependency)
                        await self._add(answer.file_descriptor_response.file_descriptor_proto)
        for file in reversed(given):
            self._pool.Add(file)

    async def call(self, service: Any, method: str, request: dict[str, Any]) -> list[dict[str, Any]]:
        described = service.methods_by_name[method]
        message = json_format.ParseDict(request, message_factory.GetMessageClass(described.input_type)())
        answer = message_factory.GetMessageClass(described.output_type)
        make: Any = self._channel.unary_stream if described.server_streaming else self._channel.unary_unary
        call = make(
            f"/{service.full_name}/{method}",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=answer.FromString,
        )(message)
        answers = [a async for a in call] if described.server_streaming else [await call]
        return [json_format.MessageToDict(a) for a in answers]


async def test_a_client_that_knows_only_reflection_lists_describes_and_calls(running: Any) -> None:
    async with grpc.aio.insecure_channel(running.target) as channel:
        reflected = ReflectedChannel(channel)
        assert await reflected.services() == {SERVICE, health.SERVICE_NAME, "grpc.reflection.v1alpha.ServerReflection"}
        service = await reflected.describe(SERVICE)
        assert [method.name for method in service.methods] == [
            "GetTeacher",
            "Score",
            "ScoreBatch",
            "Generate",
            "Tokenize",
            "Detokenize",
            "GetCacheStats",
        ]
        assert service.methods_by_name["ScoreBatch"].server_streaming
        (about,) = await reflected.call(service, "GetTeacher", {})
        assert about["model"] == "tiny-random"
        (tokenized,) = await reflected.call(service, "Tokenize", {"text": "def f"})
        fingerprint = {"tokenizerFingerprint": tokenized["tokenizerFingerprint"]}
        (scored,) = await reflected.call(service, "Score", fingerprint | {"tokenIds": tokenized["tokenIds"], "topK": 3})
        assert scored["rows"]["numRows"] == 4
        batch = fingerprint | {"sequences": [{"ids": [1, 2, 3]}, {"ids": [1]}], "topK": 2}
        answers = {a.get("index", 0): a for a in await reflected.call(service, "ScoreBatch", batch)}
        assert answers[0]["score"]["rows"]["numRows"] == 2
        # A status inside an answer: google.rpc.Status came along with the file that imports it.
        assert answers[1]["error"]["code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        checked = await reflected.describe(health.SERVICE_NAME)
        assert await reflected.call(checked, "Check", {"service": SERVICE}) == [{"status": "SERVING"}]


async def test_rows_that_were_read_by_reflection_are_the_clients(running: Any) -> None:
    import base64

    expected = await running.client.score([1, 2, 3, 4], 3, "float32")
    async with grpc.aio.insecure_channel(running.target) as channel:
        reflected = ReflectedChannel(channel)
        service = await reflected.describe(SERVICE)
        request = {
            "tokenizerFingerprint": running.backend.tokenizer.fingerprint,
            "tokenIds": [1, 2, 3, 4],
            "topK": 3,
            "logprobDtype": "LOGPROB_DTYPE_FLOAT32",
        }
        (answer,) = await reflected.call(service, "Score", request)
    ids = np.frombuffer(base64.b64decode(answer["rows"]["ids"]), "<u4").reshape(3, 3)
    np.testing.assert_array_equal(ids, expected.ids)
