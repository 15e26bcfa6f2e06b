"""Asking the teacher to write: prompts out, continuations with rows in, kept as they arrive."""

import shutil
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sparse_rows import SparseRows, join_rows
from latentforge.teacher_client.wire import dtype_to_proto, rows_from_proto
from latentforge.trainer.config.sections import GenerateRecipe, TeacherRecipe
from latentforge.trainer.data.prompts import Prompt, digest
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.run.identity import claim
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.run.progress import StageProgress
from latentforge.trainer.teacher.connection import TeacherLink
from latentforge.trainer.teacher.continuations import Continuation, Dropped, GeneratedStore
from latentforge.trainer.teacher.rows import ONES_OWN_FAULT

_MAX_DROPPED_SHARE = 0.5
# So many answers are waited for before a share means something.
_JUDGED_FROM = 20

Outcome = Continuation | Dropped


def identity(recipe: TeacherRecipe, prompts: list[Prompt], teacher: pb.GetTeacherResponse) -> dict[str, Any]:
    """What the continuations depend on."""
    about = {n: getattr(teacher, n) for n in ("backend", "model", "revision", "quantization", "tokenizer_fingerprint")}
    asked = recipe.model_dump(exclude={"targets", "share", "max_failed_share", "targets_from"})
    # As a collection was begun before there were such settings.
    for name in ("greedy_share", "text_prompts"):
        if asked["generate"][name] == GenerateRecipe.model_fields[name].default:
            del asked["generate"][name]
    return {"teacher": about, **asked, "num_prompts": len(prompts), "prompts_sha256": digest(prompts)}


def open_store(
    folder: Path, recipe: TeacherRecipe, about: dict[str, Any], num_prompts: int, *, fresh: bool
) -> GeneratedStore:
    """The folder's store, where it was begun with the same teacher, settings and prompts.

    Args:
        folder: of the store.
        recipe: the teacher's.
        about: :func:`identity`.
        num_prompts: how many make the store finished.
        fresh: start anew, unless all of it is there and can be used: the same would be asked for again.

    Raises:
        TrainerError: it was begun with something else, and not ``fresh``; names both values.
    """
    try:
        claim(folder, about, "--fresh (FRESH=1) or --run NAME")
        store = GeneratedStore(folder, recipe.logprob_dtype)
    except TrainerError:
        if not fresh:
            raise
    else:
        finished = all(number in store for number in range(num_prompts))
        if not fresh or (finished and not _too_many_dropped(store)):
            return store
        store.close()
    shutil.rmtree(folder)
    claim(folder, about, "--fresh (FRESH=1) or --run NAME")
    return GeneratedStore(folder, recipe.logprob_dtype)


def collect(run: RunContext, link: TeacherLink, store: GeneratedStore, prompts: Sequence[Prompt]) -> None:
    """Asks for the continuations of every prompt that the store lacks, several at a time.

    Args:
        run: the run.
        link: to the gateway.
        store: keeps them; a prompt's number is its place in ``prompts``.
        prompts: all of the run's.

    Raises:
        TrainerError: the teacher refused, or too many continuations cannot be used.
        TeacherLostError: it stayed away longer than the patience.
        Interrupted: asked to stop; what had arrived is kept.
    """
    n, in_flight = run.recipe.teacher.generate.n, run.settings.trainer_generate_in_flight
    wanted = [1 if prompt.greedy else n for prompt in prompts]
    missing = iter([number for number in range(len(prompts)) if number not in store])
    pending: dict[Future[list[Outcome]], int] = {}
    done = sum(wanted[number] for number in range(len(prompts)) if number in store)
    total = sum(wanted)
    if done == total:
        return _judge(store, final=True)
    with StageProgress(
        run.folder, "generate", total, run.status, first=done, console=run.console, more=run.sinks
    ) as progress:
        try:
            while True:
                while len(pending) < in_flight and (number := next(missing, None)) is not None:
                    asked = _continuations(link, run.recipe.teacher, prompts[number])
                    pending[link.submit(asked)] = number
                if not pending:
                    return _judge(store, final=True)
                if link.stop():
                    raise Interrupted
                for future in wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)[0]:
                    answers = future.result()
                    store.append(pending.pop(future), answers)
                    done += len(answers)
                    tokens = sum(len(a.token_ids) for a in answers if isinstance(a, Continuation))
                    progress.step(done, {}, tokens, note=f"continuations, {store.num_dropped} dropped")
                    _judge(store, final=False)
        finally:
            for future in pending:
                future.cancel()


async def _continuations(link: TeacherLink, recipe: TeacherRecipe, prompt: Prompt) -> list[Outcome]:
    """All continuations of one prompt."""
    settings = recipe.generate
    n, temperature, top_p = (1, 0.0, 1.0) if prompt.greedy else (settings.n, settings.temperature, settings.top_p)
    request = pb.GenerateRequest(
        max_tokens=settings.max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=prompt.seed,
        n=n,
        top_k=recipe.top_k,
        logprob_dtype=dtype_to_proto(recipe.logprob_dtype),
        expected_revision=link.revision,
    )
    if prompt.text is None:
        request.chat.messages.extend(pb.ChatMessage(role=role, content=content) for role, content in prompt.messages)
    else:
        request.text = prompt.text

    async def ask() -> list[Outcome]:
        pieces: list[list[pb.GenerateResponse]] = [[] for _ in range(n)]
        async for piece in link.client.generate(request):
            pieces[piece.index].append(piece)
        return [_continuation(p) for p in pieces]

    try:
        return await link.retried(ask)
    except TrainerError as error:
        cause = error.__cause__
        if not isinstance(cause, TeacherError) or cause.code not in ONES_OWN_FAULT:
            raise
        return [Dropped(f"refused: {cause}")] * n


def _continuation(pieces: list[pb.GenerateResponse]) -> Outcome:
    """One continuation of its messages in order.

    Raises:
        TeacherError: the stream ended early.
    """
    if not pieces or pieces[-1].finish_reason == pb.FINISH_REASON_UNSPECIFIED:
        raise TeacherError(grpc.StatusCode.UNAVAILABLE, "the stream ended before a continuation was complete")
    if pieces[-1].finish_reason == pb.FINISH_REASON_DROPPED:
        return Dropped(pieces[-1].detail or "no reason given")
    prompt_ids = np.array(pieces[0].prompt_token_ids, dtype=np.uint32)
    token_ids = np.array([token_id for piece in pieces for token_id in piece.token_ids], dtype=np.uint32)
    if not len(token_ids):
        return Dropped("it has no tokens")
    try:
        rows = join_rows([rows_from_proto(piece.rows) for piece in pieces if piece.token_ids])
    except ValueError as error:
        return Dropped(f"its rows do not fit: {error}")
    if wrong := _misplaced(rows, len(prompt_ids), len(token_ids)):
        return Dropped(wrong)
    return Continuation(prompt_ids, token_ids, rows, pieces[-1].finish_reason == pb.FINISH_REASON_STOP)


def _misplaced(rows: SparseRows, num_prompt_ids: int, num_token_ids: int) -> str | None:
    if (rows.first_position, len(rows)) == (num_prompt_ids, num_token_ids) and num_prompt_ids:
        return None
    return (
        f"its {num_token_ids} tokens after a prompt of {num_prompt_ids} came with {len(rows)} rows from position "
        f"{rows.first_position}"
    )


def _judge(store: GeneratedStore, *, final: bool) -> None:
    """Raises TrainerError where more than half of the continuations cannot be used."""
    asked = store.num_dropped + store.num_usable
    if (final or asked >= _JUDGED_FROM) and _too_many_dropped(store):
        raise TrainerError(
            f"{store.num_dropped} of {asked} continuations cannot be used, the last one because: "
            f"{store.dropped()[-1]}. "
            "Look at the gateway's log, run `make check-api`, and see that the gateway's TOKENIZER_PATH is its model's "
            f"tokenizer; then start anew with --fresh (FRESH=1). Every reason is in {store.path}, column dropped"
        )


def _too_many_dropped(store: GeneratedStore) -> bool:
    return store.num_dropped > _MAX_DROPPED_SHARE * (store.num_dropped + store.num_usable)
