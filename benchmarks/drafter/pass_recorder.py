"""Loaded into vLLM's worker, whose Python has nothing of ours: notes what every pass of the teacher read and wrote."""

import time
from typing import Any


class PassRecorder:
    """vLLM adds this class to its worker's bases (``worker_extension_cls``), so its methods can be called by name.

    One pass is noted as [began, seconds, draft_seconds, requests]: when it began, what the teacher took (input, forward
    and sampling), what drafting took behind it, and for each request [drafted, written]: the draft's tokens that it
    read, None where it read a prompt, and the tokens that it gave.
    """

    def record_passes(self: Any) -> None:
        """Begins to note; to be called once."""
        self.noted_passes = list[Any]()
        self.noted_drafters = list[str]()
        runner = self.model_runner
        execute, sample = runner.execute_model, runner.sample_tokens
        drafting = [0.0]
        scheduled: list[Any] = []

        def execute_model(scheduler_output: Any, *rest: Any, **named: Any) -> Any:
            began = time.perf_counter()
            scheduled[:] = [scheduler_output, began]
            answer = execute(scheduler_output, *rest, **named)
            scheduled.append(time.perf_counter() - began)
            return answer

        def sample_tokens(*given: Any, **named: Any) -> Any:
            drafting[0] = 0.0
            before = time.perf_counter()
            answer = sample(*given, **named)
            seconds = time.perf_counter() - before
            if len(scheduled) == 3:
                output, began, executing = scheduled
                scheduled.clear()
                requests = _requests(output, answer)
                self.noted_passes.append([began, executing + seconds - drafting[0], drafting[0], requests])
            return answer

        runner.execute_model, runner.sample_tokens = execute_model, sample_tokens
        if hasattr(runner, "drafter"):
            propose = runner.drafter.propose

            def timed(*given: Any, **named: Any) -> Any:
                before = time.perf_counter()
                answer = propose(*given, **named)
                drafting[0] += time.perf_counter() - before
                checkpoint = getattr(runner.drafter, "checkpoint", None)
                if checkpoint is not None and checkpoint not in self.noted_drafters[-1:]:
                    self.noted_drafters.append(checkpoint)
                return answer

            runner.drafter.propose = timed

    def take_passes(self: Any) -> list[Any]:
        """Those since the last call."""
        taken: list[Any] = self.noted_passes
        self.noted_passes = []
        return taken

    def take_drafters(self: Any) -> list[str]:
        """The checkpoints that drafted since the last call, one after the other; none of what is no student."""
        taken: list[str] = self.noted_drafters
        self.noted_drafters = []
        return taken

    def forget_texts(self: Any) -> None:
        """Lets suffix decoding begin with no text, or a prompt that is asked again would find its own continuation."""
        drafter: Any = getattr(self.model_runner, "drafter", None)
        if hasattr(drafter, "suffix_cache"):
            config = self.vllm_config.speculative_config
            drafter.suffix_cache = type(drafter.suffix_cache)(
                max_tree_depth=config.suffix_decoding_max_tree_depth,
                max_cached_requests=config.suffix_decoding_max_cached_requests,
            )


def _requests(scheduled: Any, answer: Any) -> list[list[int | None]]:
    """[drafted, written] of every request of a pass."""
    found = []
    for name, ids in zip(answer.req_ids, answer.sampled_token_ids, strict=False):
        drafted = len(scheduled.scheduled_spec_decode_tokens.get(name, ()))
        reads_text = scheduled.num_scheduled_tokens[name] == drafted + 1
        found.append([drafted if reads_text else None, len(ids)])
    return found
