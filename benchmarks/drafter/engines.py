"""vLLM engines, one for each way to draft, all there at once so that they can be measured in turns."""

import json
import select
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.drafter.passes import Pass
from benchmarks.drafter.plan import DrafterPlan
from benchmarks.gateway.servers import Dtype, MissingError
from tools import vllm_env
from tools.processes import Child, ChildError, Children

ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = Path(__file__).with_name("engine_script.py")
_START_SECONDS = 1800.0
# Longest that one request to an engine may take.
_ANSWER_SECONDS = 3600.0
_LOOK_EVERY = 0.2
_END_SECONDS = 5.0
# vLLM's processes look for messages without a pause for a second behind the last one, and would disturb the next.
_SETTLE_SECONDS = 1.3
# Together they read 512 beginnings of texts soon.
_MOST_AT_ONCE = 32
_MAX_MODEL_LEN = 512
# Tokens of which one may be as likely as the first, in a format of few bits.
_LIKELIEST = 8
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Of plugins that packages bring along none is asked for.
    "VLLM_PLUGINS": "",
}


@dataclass(frozen=True)
class Method:
    """One way to write the teacher's text.

    Attributes:
        name: in results.
        speculative: vLLM's speculative_config; None drafts nothing.
        env: variables of its engine.
        paths: folders that its engine imports from besides this checkout.
    """

    name: str
    speculative: Mapping[str, Any] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    paths: Sequence[Path] = ()


@dataclass(frozen=True)
class WrittenTexts:
    """What an engine wrote at once.

    Attributes:
        token_ids: of each text.
        seconds: from the first prompt to the last token.
        passes: of the teacher.
        top: of each text the likeliest first tokens with their log-probabilities, where they were asked for.
        drafters: the checkpoints that drafted, one after the other.
    """

    token_ids: list[list[int]]
    seconds: float
    passes: list[Pass]
    top: list[list[list[Any]]]
    drafters: Sequence[str] = ()

    @property
    def tokens(self) -> int:
        return sum(map(len, self.token_ids))


class VllmEngine:
    """A running engine.

    Args:
        method: that it drafts by.
        child: its process.
        listening: the socket that it connects to.
    """

    def __init__(self, method: Method, child: Child, listening: socket.socket) -> None:
        self.method = method
        self._child, self._listening = child, listening
        self._connection: socket.socket | None = None
        self.version = ""

    def wait(self) -> None:
        """
        Raises:
            ChildError: it ended.
            TimeoutError: it does not answer.
        """
        self._wait_for(self._listening, _START_SECONDS)
        self._connection, _ = self._listening.accept()
        self._lines = self._connection.makefile("rb")
        self.version = self._answer(_START_SECONDS)["version"]

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        *,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        with_top: bool = False,
        forget: bool = False,
        at_once: int | None = None,
    ) -> WrittenTexts:
        """Continues each prompt by ``new_tokens`` or to where the teacher ends the text.

        Args:
            prompts: ids.
            temperature: 0 takes the likeliest token.
            seeds: one for each prompt.
            with_top: notes what was likeliest to come first.
            forget: what drafts are made of in earlier texts is forgotten before.
            at_once: so many together, the next ones when all of them have ended; None takes all.

        Raises:
            ChildError: it ended.
            TimeoutError: it does not answer.
        """
        assert self._connection is not None
        params: dict[str, Any] = {"temperature": temperature, "max_tokens": new_tokens}
        if with_top:
            params["logprobs"] = _LIKELIEST
        asked = {
            "prompts": [list(ids) for ids in prompts],
            "params": params,
            "seeds": None if seeds is None else list(seeds),
            "at_once": at_once or max(1, len(prompts)),
            "forget": forget,
        }
        time.sleep(_SETTLE_SECONDS)
        self._connection.sendall(json.dumps(asked).encode() + b"\n")
        answer = self._answer(_ANSWER_SECONDS)
        passes = [Pass.of(noted) for noted in answer["passes"]]
        return WrittenTexts(answer["token_ids"], answer["seconds"], passes, answer["top"], answer["drafters"])

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._connection is not None
        self._wait_for(self._connection, seconds)
        line = self._lines.readline()
        if not line:
            self._child.stop(grace=_END_SECONDS)
            raise ChildError(self._child.obituary(self._child.exit_code() or 0))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _wait_for(self, readable: socket.socket, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not select.select([readable], [], [], _LOOK_EVERY)[0]:
            self._child.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"vLLM ({self.method.name}) did not answer within {seconds:.0f} s")


class VllmEngines:
    """Starts engines and stops them when left.

    Args:
        stack: closes them.
        model: the teacher's folder.
        logs: folder for what they print.
        scratch: folder for their jobs.
    """

    def __init__(
        self, stack: ExitStack, model: Path, dtype: Dtype, plan: DrafterPlan, logs: Path, scratch: Path
    ) -> None:
        if not vllm_env.is_ready():
            raise MissingError(f"{vllm_env.VENV.name} is not ready; run python -m tools.vllm_env")
        self._stack, self._model, self._dtype, self._plan = stack, model, dtype, plan
        self._logs, self._scratch = logs, scratch

    def start(self, method: Method) -> VllmEngine:
        """An engine, ready to write; raises as :meth:`VllmEngine.wait`."""
        place = self._scratch / f"{method.name}.socket"
        listening = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        # An engine of the same name may have been there before, for another measurement.
        place.unlink(missing_ok=True)
        listening.bind(str(place))
        listening.listen(1)
        engine = {
            "model": str(self._model.absolute()),
            "dtype": self._dtype,
            "max_model_len": _MAX_MODEL_LEN,
            "max_num_seqs": _MOST_AT_ONCE,
            # Every prompt is read anew, however often it is asked.
            "enable_prefix_caching": False,
            "enforce_eager": not self._plan.is_compiled,
            "worker_extension_cls": "benchmarks.drafter.pass_recorder.PassRecorder",
            "seed": 0,
        }
        if method.speculative is not None:
            engine["speculative_config"] = dict(method.speculative)
        job = self._scratch / f"{method.name}.json"
        job.write_text(json.dumps({"socket": str(place), "engine": engine}), encoding="utf-8")
        paths = ":".join(map(str, (ROOT, *method.paths)))
        env = {**_ENVIRONMENT, "PYTHONPATH": paths, **method.env}
        children = self._stack.enter_context(Children(self._logs, env=env, cwd=self._scratch))
        command = [str(vllm_env.VENV_PYTHON), str(_SCRIPT), str(job)]
        started = VllmEngine(method, children.start(f"vllm-{method.name}", command), listening)
        started.wait()
        return started
