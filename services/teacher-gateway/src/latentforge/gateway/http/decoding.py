"""JSON bodies to requests, and work on megabytes such that it holds up nobody."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

import msgspec

from latentforge.gateway.http.errors import HttpError, invalid

P = ParamSpec("P")
T = TypeVar("T")

# What takes less than a millisecond is not worth a thread.
_SMALL = 16 * 1024
_THREADS = 2
_IDS = msgspec.json.Decoder(list[int])
# Parts of a body that are decoded one by one.
RAWS = msgspec.json.Decoder(list[msgspec.Raw])


def decoded(decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw) -> T:
    """
    Raises:
        HttpError: 400; it is no JSON, or something in it has another type than it may.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise HttpError(400, "invalid_fields", f"the request is wrong: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise HttpError(400, "invalid_json", f"the body is not JSON: {error}") from None


def decoded_ids(raws: Sequence[msgspec.Raw], param: str) -> list[list[int]]:
    """Lists of ids, each by itself: while a list is decoded no other thread runs.

    Raises:
        HttpError: 400; one of them is no such list.
    """
    every = []
    for at, raw in enumerate(raws):
        try:
            every.append(_IDS.decode(raw))
        except msgspec.DecodeError as error:
            raise invalid(f"{param}[{at}]", f"is no list of ids: {error}") from None
    return every


class Workers:
    """Threads of HTTP's own: gRPC's rows are packed in the others, and megabytes of JSON would keep them waiting."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="http")

    async def run(self, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Runs ``work`` beside the event loop."""
        job = partial(work, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, job)

    async def run_large(self, size: int, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """The same where ``work`` is on more than a few thousand bytes or ids; else it is done here and now."""
        return work(*arguments, **options) if size < _SMALL else await self.run(work, *arguments, **options)
