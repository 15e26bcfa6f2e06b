"""The teacher of an evaluation: rows, scores and samples through the gateway."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import grpc
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentforge.model.metrics.brier import brier_values_of_logprobs
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.teacher_client.sync_client import SyncTeacherClient
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluate.brier import NUM_TARGETS, PrefixGroup, Values
from latentforge.trainer.evaluate.generations import Text

_SEQUENCES_AT_ONCE = 8
_MEETING_SECONDS = 20.0
_EVALUATE_TEACHER = 6


class EvaluationTeacher:
    """A gateway that scores; use as a context manager.

    Args:
        settings: name the gateway.
        tokenizer: of the sequences that it is given.
        vocab_size: of the model, where that has the same tokenizer.
        top_k: entries per row.

    Raises:
        TrainerError: nobody answers, or the teacher does not fit or cannot score.
        TeacherError: it refuses.
    """

    def __init__(self, settings: TrainerSettings, tokenizer: TextTokenizer, vocab_size: int | None, top_k: int) -> None:
        self._tokenizer, self._top_k = tokenizer, top_k
        self._in_flight = settings.trainer_generate_in_flight
        target, key, tls_ca = settings.gateway_target, settings.gateway_api_key, settings.gateway_tls_ca
        with SyncTeacherClient(target, timeout=_MEETING_SECONDS, api_key=key, tls_ca=tls_ca, attempts=1) as client:
            try:
                self.about = client.teacher()
            except TeacherError as error:
                if error.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                raise TrainerError(
                    f"{error.message}. `make eval` starts one for as long as it takes, `teacher-gateway serve` for "
                    "longer; --no-teacher leaves out what needs it"
                ) from None
        self._check(target, vocab_size)
        self._client = SyncTeacherClient(target, api_key=key, tls_ca=tls_ca)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    @property
    def name(self) -> str:
        return f"{self.about.model} ({self.about.backend}, {self.about.revision})"

    @property
    def gives_whole_rows(self) -> bool:
        """Whether a row may have an entry for every id."""
        return bool(self.about.max_top_k >= self.about.vocab_size)

    def _check(self, target: str, vocab_size: int | None) -> None:
        about, who = self.about, f"the teacher {self.about.model} ({self.about.backend}) at {target}"
        if about.tokenizer_fingerprint != self._tokenizer.fingerprint:
            raise TrainerError(
                f"{who} has the tokenizer fingerprint {about.tokenizer_fingerprint}, the tokenizer in "
                f"{self._tokenizer.folder} has {self._tokenizer.fingerprint}; start the gateway with the teacher that "
                "the model learned from, or give --teacher-tokenizer or --no-teacher"
            )
        if not about.can_score:
            raise TrainerError(f"{who} cannot score given text; give --no-teacher, or another teacher")
        if about.max_top_k < self._top_k:
            raise TrainerError(
                f"--top-k is {self._top_k}, but {who} gives at most {about.max_top_k} entries a row; set it to that"
            )
        if vocab_size is not None and about.vocab_size > vocab_size:
            raise TrainerError(
                f"{who} has an output layer of {about.vocab_size} ids, the model has {vocab_size}: it did not learn "
                "from this teacher; give --no-teacher"
            )

    def rows(
        self,
        sequences: Sequence[list[int]],
        *,
        top_k: int | None = None,
        on_sequence: Callable[[], None] = lambda: None,
    ) -> list[SparseRows]:
        """Rows for tokens 1 … L-1 of each sequence, in their order.

        Raises:
            TeacherError: one was refused, or the gateway is lost.
        """
        found: dict[int, SparseRows] = {}
        for first in range(0, len(sequences), _SEQUENCES_AT_ONCE):
            part = sequences[first : first + _SEQUENCES_AT_ONCE]
            answers = self._client.score_batch(
                part, top_k or self._top_k, "float32", expected_revision=self.about.revision
            )
            for scored in answers:
                if scored.rows is None:
                    assert scored.error is not None
                    raise scored.error
                found[first + scored.index] = scored.rows
                on_sequence()
        return [found[i] for i in range(len(sequences))]

    def score(self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """The teacher's log probabilities of each text's tokens behind its prompt, which has at least 1 token.

        Raises:
            TeacherError: one was refused, or the gateway is lost.
        """
        # A text that ended before its first token has nothing to be scored, but a sequence needs two tokens.
        asked = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True) if text]
        rows = iter(self.rows(asked, top_k=1))
        none = np.zeros(0, dtype=np.float32)
        return [
            _realised(next(rows), len(prompt)) if text else none for prompt, text in zip(prompts, texts, strict=True)
        ]

    def continuations(
        self,
        prompts: Tensor,
        num_tokens: int,
        temperature: float,
        seed: int,
        *,
        num_samples: int = 1,
        on_prompt: Callable[[], None] = lambda: None,
    ) -> list[list[Text]]:
        """``num_samples`` continuations of each of prompts [n, L], whole distribution, no top-p.

        Raises:
            TrainerError: the teacher cannot generate, or dropped one.
            TeacherError: it refused, or the gateway is lost.
        """
        if not self.about.can_generate:
            raise TrainerError(f"the teacher {self.name} cannot generate, so its own samples cannot be evaluated")
        seeds = np.random.default_rng([_EVALUATE_TEACHER, seed]).integers(2**62, size=len(prompts)).tolist()

        def ask(prompt: list[int], own_seed: int) -> list[Text]:
            request = pb.GenerateRequest(
                token_ids=pb.TokenIds(ids=prompt),
                max_tokens=num_tokens,
                temperature=temperature,
                seed=own_seed,
                n=num_samples,
                expected_revision=self.about.revision,
            )
            ids: list[list[int]] = [[] for _ in range(num_samples)]
            reasons = [pb.FINISH_REASON_UNSPECIFIED] * num_samples
            for piece in self._client.generate(request):
                ids[piece.index] += piece.token_ids
                reasons[piece.index] = piece.finish_reason
                if piece.finish_reason == pb.FINISH_REASON_DROPPED:
                    raise TrainerError(f"the teacher {self.name} dropped a continuation: {piece.detail}")
            return [_text(i, r, self._tokenizer.special_ids) for i, r in zip(ids, reasons, strict=True)]

        found = []
        pool = ThreadPoolExecutor(self._in_flight)
        try:
            for texts in pool.map(ask, prompts.tolist(), seeds):
                found.append(texts)
                on_prompt()
        finally:
            pool.shutdown(cancel_futures=True)
        return found

    def brier_values(self, num_samples: int, *, on_prompt: Callable[[], None] = lambda: None) -> Values:
        """Of the teacher's own samples and their log probabilities, for ``evaluate_brier``.

        An end of text has the probability of the tokenizer's end-of-text id, and behind it nothing is uncertain: the
        API does not go on there.
        """

        def values(group: PrefixGroup, seed: int) -> Tensor:
            prefixes, eos = group.prefixes, self._tokenizer.eos_id
            answers = self.continuations(prefixes, NUM_TARGETS, 1.0, seed, num_samples=num_samples, on_prompt=on_prompt)
            samples = [self._logprobs(prefixes, [_ended(of[i], eos) for of in answers]) for i in range(num_samples)]
            return brier_values_of_logprobs(torch.stack(samples), self._logprobs(prefixes, group.targets.tolist()))

        return values

    def _logprobs(self, prefixes: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """Of texts of up to 8 tokens, float32 [n, 8]; zeros behind their last token."""
        found = torch.zeros(len(texts), NUM_TARGETS)
        for row, logprobs in zip(found, self.score(prefixes.tolist(), texts), strict=True):
            row[: len(logprobs)] = torch.from_numpy(logprobs.copy())
        return found


def _ended(text: Text, eos_id: int) -> list[int]:
    return [*text.ids, eos_id] if text.ended else text.ids


def _text(ids: list[int], reason: pb.FinishReason.ValueType, special_ids: frozenset[int]) -> Text:
    ended = reason == pb.FINISH_REASON_STOP
    # The id that ended the text may be sent with it.
    return Text(ids[:-1] if ended and ids and ids[-1] in special_ids else ids, ended)


def _realised(rows: SparseRows, first: int) -> NDArray[np.float32]:
    return rows.realised_logprobs[first - rows.first_position :]
