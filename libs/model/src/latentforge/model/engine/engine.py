"""The serving engine: one loop of steps over all texts of all models. Ids only."""

import logging
import math
import time
from collections.abc import Callable

from latentforge.model.decoding.batch import BatchDecoding, TextLogprobs, WrittenChunk
from latentforge.model.engine.admission import Admission
from latentforge.model.engine.errors import DeadlineError, GenerationCancelledError, GenerationFailedError
from latentforge.model.engine.limits import EngineLimits
from latentforge.model.engine.observer import EngineObserver, Outcome
from latentforge.model.engine.requests import GenerationRequest, ScoringRequest, Written
from latentforge.model.engine.running import DecodingRunner, RunningText, cut
from latentforge.model.engine.scoring import ScoringTurns
from latentforge.model.engine.ticket import Listener, Ticket

logger = logging.getLogger(__name__)


class Engine:
    """Admits requests up to its bounds and steps all texts that have a slot, a chunk each time.

    One thread calls :meth:`run_once` again and again; what stands before it may be called from any. A decoding is known
    here as long as it has requests, so that its memory is freed with its owner's reference and its last request.

    Args:
        limits: the bounds.
        observer: is told what was done.
        on_iteration: called in the loop's thread when an iteration has told its listeners all.
        clock: gives seconds that never run backwards.

    Attributes:
        batch_size: texts of the last step.
        steps: steps of decodings.
        iterations: rounds of the loop.
        tokens_drawn: ids that requests have been given.
        prompt_tokens_read: tokens of prompts that were read, pads of their first chunks included.
    """

    def __init__(
        self,
        limits: EngineLimits | None = None,
        observer: EngineObserver | None = None,
        on_iteration: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or EngineLimits()
        self.observer = observer or EngineObserver()
        self.on_iteration = on_iteration
        self.batch_size = self.steps = self.iterations = self.tokens_drawn = self.prompt_tokens_read = 0
        self._clock = clock
        self._admission = Admission(self.limits, clock)
        self._runners: dict[BatchDecoding, DecodingRunner] = {}
        self._scoring = ScoringTurns()

    @property
    def queued(self) -> int:
        """Requests that have not begun."""
        return self._admission.queued

    @property
    def running(self) -> int:
        """Requests that are written or scored."""
        return self._admission.running

    @property
    def slots_used(self) -> int:
        """Texts that are written."""
        return self._admission.slots_used

    @property
    def slots_total(self) -> int:
        """Slots of all decodings that were asked for something and still exist."""
        return self._admission.slots_total

    @property
    def is_idle(self) -> bool:
        """Whether there is no request."""
        return self._admission.is_idle

    def check_room(self, decoding: BatchDecoding, num_others: int = 0) -> None:
        """Checks that one more generation would be taken now.

        Args:
            decoding: what it would be bound to.
            num_others: requests that are about to be submitted before it.

        Raises:
            EngineFullError: it would not.
            GenerationCancelledError: the engine takes no more requests.
        """
        self._admission.check_room(decoding, num_others)

    def submit(
        self, request: GenerationRequest | ScoringRequest, listener: Listener, seconds: float | None = None
    ) -> Ticket:
        """Queues a request.

        Args:
            request: what is asked.
            listener: is told what comes of it, see :data:`latentforge.model.engine.ticket.Listener`.
            seconds: the longest that it may take from now on; the limits' ``request_seconds`` by default.

        Returns:
            Its place, to cancel it by and to read its timings.

        Raises:
            ValueError: it asks for nothing.
            EngineFullError: the queue is full.
            GenerationCancelledError: the engine takes no more requests.
        """
        return self._admission.submit(request, listener, seconds)

    def close(self) -> None:
        """Takes no more requests, and has the next iteration cancel all that there are."""
        self._admission.close()

    def run_once(self) -> bool:
        """One iteration: admits, reads a piece of the prompts, steps every text that is read, scores one piece.

        Returns:
            Whether it did anything; where not, :meth:`wait` until there is something to do.
        """
        if self._admission.is_closed:
            did = self._end_all(_shut_down, "cancelled")
        else:
            did = self._end_cancelled() + self._end_late()
            did += self._admit() + self._prefill() + self._step() + self._score()
        self.iterations += 1
        self.on_iteration()
        return did > 0

    def wait(self, timeout: float | None = None) -> bool:
        """Sleeps until there is something to do, or for ``timeout`` seconds; False once the engine is closed."""
        self._admission.wait(timeout)
        return not (self._admission.is_closed and self._admission.is_idle)

    def fail_all(self, message: str) -> None:
        """Ends every request with GenerationFailedError, for a loop whose iteration failed."""
        self._end_all(lambda: GenerationFailedError(message), "failed")
        self.on_iteration()

    def _end_cancelled(self) -> int:
        tickets = self._admission.take_cancelled()
        return sum(self._drop(ticket, GenerationCancelledError("it was cancelled"), "cancelled") for ticket in tickets)

    def _end_late(self) -> int:
        now = self._clock()
        queued = self._admission.take_late(now)
        for ticket in queued:
            self._end(ticket, _too_late(ticket), "deadline")
        late = [ticket for ticket in self._running() if ticket.deadline < now]
        return len(queued) + sum(self._drop(ticket, _too_late(ticket), "deadline") for ticket in late)

    def _admit(self) -> int:
        num = 0
        for lane in self._admission.lanes():
            while not (isinstance(lane, BatchDecoding) and lane.num_free == 0):
                ticket = self._admission.take(lane)
                if ticket is None:
                    break
                num += 1
                self._start(ticket)
        return num

    def _start(self, ticket: Ticket) -> None:
        request = ticket.request
        ticket.timings.started = self._clock()
        try:
            if isinstance(request, ScoringRequest):
                self._scoring.start(ticket, request)
            else:
                runner = self._runners.setdefault(request.decoding, DecodingRunner(request.decoding))
                runner.open(ticket, request)
        # Ids that are not in the vocabulary, for one.
        except Exception as error:
            self._release(ticket)
            self._end(ticket, error.with_traceback(None), "failed")

    def _prefill(self) -> int:
        """Reads as much as may be between two steps, whosever prompts they are."""
        # Two orders take turns: one is fair to short prompts, the other to long ones.
        oldest_first = bool(self.iterations % 2)
        left = self.limits.prefill_tokens
        while left > 0 and (runners := [runner for runner in self._runners.values() if runner.unread]):
            runner = min(runners, key=lambda runner: runner.urgency(oldest_first=oldest_first))
            try:
                num = runner.prefill(left, oldest_first=oldest_first)
            except Exception as error:
                self._fail(runner, error)
                continue
            if not num:
                break
            left -= num
            self.prompt_tokens_read += num
            self.observer.on_prefill(num)
        return left < self.limits.prefill_tokens

    def _step(self) -> int:
        num = 0
        for runner in list(self._runners.values()):
            try:
                written = runner.step()
            except Exception as error:
                self._fail(runner, error)
                continue
            if not written:
                continue
            num += 1
            self.steps += 1
            self.batch_size = len(written)
            num_tokens = sum(self._write(runner, running, chunk) for running, chunk in written)
            self.tokens_drawn += num_tokens
            self.observer.on_step(len(written), num_tokens)
        return num

    def _write(self, runner: DecodingRunner, running: RunningText, chunk: WrittenChunk) -> int:
        """Tells a request what a step wrote for it, and ends it where its text ends; gives how many ids it got."""
        ticket, timings = running.ticket, running.ticket.timings
        timings.steps += 1
        if not chunk.finite:
            error = GenerationFailedError("the model's logits are not finite; this checkpoint must not be served")
            self._close(runner, running, error, "failed")
            return 0
        try:
            written = cut(running, chunk)
        # The request's own code failed, which is nobody else's business.
        except Exception as error:
            logger.exception("the stop of a request failed")
            self._close(runner, running, error.with_traceback(None), "failed")
            return 0
        timings.num_tokens += len(written.token_ids)
        if timings.first_written is None:
            timings.first_written = self._clock()
        if written.finish_reason is None:
            self._tell(ticket, written)
        else:
            self._close(runner, running, written, written.finish_reason)
        return len(written.token_ids)

    def _score(self) -> int:
        if not self._scoring.running:
            return 0
        ticket = self._scoring.running[0].ticket
        outcome: Outcome = "failed"
        event: TextLogprobs | Exception | None
        try:
            event = self._scoring.advance()
        except ValueError as error:
            event = error.with_traceback(None)
        except Exception as error:
            logger.exception("scoring a text failed")
            event = GenerationFailedError(f"the text could not be scored: {_named(error)}")
        if isinstance(event, TextLogprobs):
            if any(math.isnan(logprob) for logprob in event.logprobs):
                event = GenerationFailedError("the model's log probabilities are no numbers; it must not be served")
            else:
                outcome, ticket.timings.num_tokens = "scored", len(event.logprobs)
        if event is not None:
            self._release(ticket)
            self._end(ticket, event, outcome)
        return 1

    def _fail(self, runner: DecodingRunner, error: Exception) -> None:
        """Ends all texts of a decoding whose step failed: what that left in its memory is unknown."""
        logger.error("a step of %d texts failed", len(runner.texts), exc_info=error)
        for running in list(runner.texts):
            told = GenerationFailedError(f"the model failed while it wrote this text: {_named(error)}")
            self._close(runner, running, told, "failed")

    def _running(self) -> list[Ticket]:
        tickets = [running.ticket for runner in self._runners.values() for running in runner.texts]
        return tickets + [score.ticket for score in self._scoring.running]

    def _end_all(self, error: Callable[[], Exception], outcome: Outcome) -> int:
        queued = self._admission.take_all()
        for ticket in queued:
            self._end(ticket, error(), outcome)
        return len(queued) + sum(self._drop(ticket, error(), outcome) for ticket in self._running())

    def _drop(self, ticket: Ticket, error: Exception, outcome: Outcome) -> int:
        """Ends a ticket wherever it is; gives 1, or 0 where it had ended already."""
        if ticket.is_over:
            return 0
        if self._admission.remove(ticket):
            self._end(ticket, error, outcome)
        elif isinstance(ticket.request, ScoringRequest):
            self._scoring.close(ticket)
            self._release(ticket)
            self._end(ticket, error, outcome)
        else:
            runner = self._runners[ticket.request.decoding]
            self._close(runner, runner.of(ticket), error, outcome)
        return 1

    def _close(
        self, runner: DecodingRunner, running: RunningText, event: Written | Exception, outcome: Outcome
    ) -> None:
        """Frees a text's slot and tells its last event."""
        try:
            runner.close(running)
        except Exception:
            logger.exception("a slot could not be freed")
        self._release(running.ticket)
        self._end(running.ticket, event, outcome)

    def _release(self, ticket: Ticket) -> None:
        """Lets go of a running ticket's place, and of a decoding that writes nothing else."""
        decoding = ticket.request.decoding
        self._admission.release(ticket)
        if decoding in self._runners and not self._runners[decoding].texts:
            del self._runners[decoding]

    def _end(self, ticket: Ticket, event: Written | TextLogprobs | Exception, outcome: Outcome) -> None:
        timings = ticket.timings
        timings.ended = self._clock()
        if timings.started is not None and outcome != "cancelled":
            self._admission.note_seconds(timings.running_seconds)
        ticket.is_over = True
        self._tell(ticket, event)
        ticket.forget_listener()
        self.observer.on_end(ticket.request, outcome, timings)

    def _tell(self, ticket: Ticket, event: Written | TextLogprobs | Exception) -> None:
        try:
            ticket.tell(event)
        except Exception:
            logger.exception("a listener failed; its request is cancelled")
            ticket.cancel()


def _too_late(ticket: Ticket) -> DeadlineError:
    request = ticket.request
    if isinstance(request, ScoringRequest):
        return DeadlineError(f"{len(request.token_ids)} tokens were not scored in {ticket.seconds:g} s")
    return DeadlineError(
        f"{ticket.timings.num_tokens} of at most {request.max_tokens} tokens were written in {ticket.seconds:g} s, "
        "the longest that a request may take; ask for fewer with max_tokens"
    )


def _shut_down() -> Exception:
    return GenerationCancelledError("the engine was shut down")


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
