"""Writing in this process, with the newest checkpoint."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from latentforge.core.command_line import errors_reported, fail
from latentforge.core.logs import configure_logging
from latentforge.core.settings import load_settings
from latentforge.inference.cli.writing import Summary, Writing
from latentforge.inference.main import build_registry
from latentforge.inference.rest.completion import prepare, stops
from latentforge.inference.rest.schemas.generate import GenerateRequest
from latentforge.inference.settings import InferenceSettings
from latentforge.model.engine import offline
from latentforge.model.engine.requests import GenerationRequest
from latentforge.snapshots.snapshot import Snapshot
from latentforge.text.chat_template import Message
from latentforge.text.stopping_text import StoppingText


def newest_snapshot(checkpoints: Path | None, run: str | None) -> Snapshot:
    """What would be served; ends the process with how to make one where there is none."""
    with errors_reported():
        settings = load_settings(InferenceSettings, checkpoints_dir=checkpoints, checkpoint_run=run)
        # What is wrong with a checkpoint is told once, by the error below.
        configure_logging("inference", level="ERROR")
        registry = build_registry(settings)
    registry.refresh()
    if registry.current is None:
        fail(
            f"no checkpoint to load: waiting for {registry.waiting_for}. `make demo` makes one, and so does "
            "`make toy train-ae train-student`; --checkpoints or CHECKPOINTS_DIR names another folder"
        )
    return registry.current


def write_here(snapshot: Snapshot, request: GenerateRequest) -> Writing:
    """Continues a prompt.

    Raises:
        PromptError: it does not fit into the context.
    """
    planned = prepare(snapshot, request)
    words, _ = stops(snapshot, request)
    return _written(snapshot, planned.generation, words)


def answer_here(snapshot: Snapshot, messages: Sequence[Message], request: GenerateRequest) -> Writing:
    """Answers a chat as the checkpoint's template renders it.

    Args:
        snapshot: who answers.
        messages: with role and content.
        request: how the answer is drawn; its prompt is not read, and its max_tokens is lowered to what fits.

    Raises:
        ChatError: there is no template, or it refuses the messages.
        ValueError: the chat is too long.
    """
    ids = snapshot.tokenizer.begin(snapshot.tokenizer.encode_chat(messages, to_answer=True))
    if len(ids) > snapshot.max_prompt_tokens:
        raise ValueError(
            f"the chat has {len(ids)} tokens, but {snapshot.id} reads at most {snapshot.max_prompt_tokens}; "
            "/reset begins another"
        )
    # Of the empty prompt everything is taken but the ids.
    planned = prepare(snapshot, request.model_copy(update={"prompt": "", "max_tokens": 1}))
    most = request.max_tokens or snapshot.max_context_tokens
    ends = planned.generation.end_ids | snapshot.end_ids
    generation = replace(planned.generation, prompt_ids=ids, max_tokens=most, end_ids=ends)
    return _written(snapshot, generation, ())


def _written(snapshot: Snapshot, generation: GenerationRequest, stop: Sequence[str]) -> Writing:
    text = StoppingText(snapshot.tokenizer, stop)
    started = time.perf_counter()
    num_tokens = num_steps = 0
    reason = ""
    for written in offline.stream(replace(generation, stop=text.read)):
        num_tokens += len(written.token_ids)
        num_steps += 1
        reason = written.finish_reason or reason
        yield from filter(None, [text.take()])
    yield from filter(None, [text.flush()])
    seed = generation.params.seed
    assert seed is not None
    return Summary(snapshot.id, num_tokens, num_steps, time.perf_counter() - started, seed, reason)
