"""Blocks encoded one after another here, or ahead in other processes; they come in their order either way."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetError
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue

from latentforge.text.encoding import EncodedBlock, EncodingRules, encode_block
from latentforge.text.encoding_process import EncodingProcess
from latentforge.text.errors import PackingStoppedError
from latentforge.text.text_source import Block
from latentforge.text.tokenizer import TextTokenizer

_BYTES_IN_FLIGHT = 2**26
_LOOK_SECONDS = 0.2


def encoded_in_order(
    blocks: Iterator[Block],
    tokenizer: TextTokenizer,
    rules: EncodingRules,
    processes: int,
    stop: Callable[[], bool],
) -> Generator[tuple[Block, EncodedBlock]]:
    """Blocks with what they encode to.

    Args:
        blocks: some are taken ahead where processes encode, of a bounded number of bytes.
        tokenizer, rules: see :func:`encode_block`.
        processes: how many encode; with 0 this one does.
        stop: asked before each block and while one is waited for.

    Raises:
        TextError: as :func:`encode_block`, or a process died.
        PackingStoppedError: ``stop`` said so.
    """

    def check() -> None:
        if stop():
            raise PackingStoppedError

    if not processes:
        for block in blocks:
            check()
            yield block, encode_block(block, tokenizer, rules)
        return
    waiting: deque[tuple[Block, Future[EncodedBlock]]] = deque()
    in_flight = 0

    def oldest() -> tuple[Block, EncodedBlock]:
        nonlocal in_flight
        block, future = waiting.popleft()
        in_flight -= len(block.raw.data)
        while True:
            try:
                return block, future.result(_LOOK_SECONDS)
            except NotYetError:
                check()

    with _pool(tokenizer, rules, processes) as submit:
        for block in blocks:
            check()
            while waiting and (len(waiting) >= 2 * processes or in_flight + len(block.raw.data) > _BYTES_IN_FLIGHT):
                yield oldest()
            waiting.append((block, submit(block)))
            in_flight += len(block.raw.data)
        while waiting:
            yield oldest()


@contextmanager
def _pool(
    tokenizer: TextTokenizer, rules: EncodingRules, processes: int
) -> Iterator[Callable[[Block], Future[EncodedBlock]]]:
    with ExitStack() as stack:
        idle: SimpleQueue[EncodingProcess] = SimpleQueue()
        pool = stack.enter_context(ThreadPoolExecutor(processes))
        for _ in range(processes):
            process = EncodingProcess(tokenizer, rules)
            # Closed before the pool, whose threads wait for them.
            stack.callback(process.close)
            idle.put(process)

        def encode(block: Block) -> EncodedBlock:
            process = idle.get()
            try:
                return process.encode(block)
            finally:
                idle.put(process)

        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        yield lambda block: pool.submit(encode, block)
