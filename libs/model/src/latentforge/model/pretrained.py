"""A published student in a few lines of Python: load, generate, score, save, share."""

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, overload

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from pydantic import ValidationError

from latentforge.core.checkpoint_files import CheckpointFiles
from latentforge.core.devices import choose_device
from latentforge.core.errors import describe_errors
from latentforge.core.files import sha256_of
from latentforge.core.manifest import MANIFEST, CheckpointError, Manifest
from latentforge.model.checkpoint import check_golden_text, load_checkpoint
from latentforge.model.decoding.batch import BatchDecoding
from latentforge.model.decoding.build import batch_decoding
from latentforge.model.decoding.scoring import score_pieces
from latentforge.model.engine.offline import run, stream
from latentforge.model.engine.requests import GenerationRequest
from latentforge.model.hub import download, local_checkpoint
from latentforge.model.latent_model import LatentModel
from latentforge.model.model_card import CARD, LIBRARY, NO_LICENSE, PIPELINE, TAGS, TEMPLATE, card_values
from latentforge.model.sampling import SamplingParams
from latentforge.text.stopping_text import StoppingText
from latentforge.text.tokenizer import TextTokenizer

_MOST_AT_ONCE = 16


class TextToken(NamedTuple):
    """A token of a text, how it is written, and its log probability behind those before it, in nats."""

    token_id: int
    text: str
    logprob: float


class LatentStudent(
    ModelHubMixin,
    library_name=LIBRARY,
    pipeline_tag=PIPELINE,
    tags=list(TAGS),
    license=NO_LICENSE,
    model_card_template=TEMPLATE,
):
    """A student and its tokenizer; made by :meth:`from_pretrained`.

    Attributes:
        manifest: what its publisher says of it.
        tokenizer: from text to ids and back.
        model: autoencoder and student.
    """

    def __init__(self, files: CheckpointFiles, tokenizer: TextTokenizer, model: LatentModel) -> None:
        self.manifest: Manifest = files.manifest
        self.tokenizer = tokenizer
        self.model = model
        self._files = files
        self._idle: BatchDecoding | None = None
        self._lending = threading.Lock()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # one argument more: the device
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str = "auto",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Loads a published student, checked like one that is served: hashes, sizes, and what it makes of its text.

        Args:
            pretrained_model_name_or_path: a checkpoint's folder; a run's, of which the pinned or newest one is taken;
                or an id of the Hugging Face hub.
            device: auto, cpu, cuda or cuda:N; auto takes CUDA where there is some.
            revision: a branch, tag or commit of the hub.
            token: for the hub; True takes the one that ``hf auth login`` stored.
            cache_dir: where downloads are kept.
            force_download: download what is there already.
            local_files_only: ask no hub; what was downloaded before is taken.

        Raises:
            CheckpointError: there is none, or it must not be used; the message says why.
            OSError: the folder cannot be read.
            SettingsError: there is no such device.
        """
        chosen = torch.device(choose_device("device", device, torch.cuda.device_count()))
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            place = local_checkpoint(folder)
        else:
            place = download(
                str(pretrained_model_name_or_path),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        files = CheckpointFiles(place, anywhere=True)
        loaded = load_checkpoint(files)
        # On the CPU, wherever it runs: that is where the publisher computed it.
        check_golden_text(files, loaded)
        return cls(files, loaded.tokenizer, loaded.model.to(chosen))

    @property
    def id(self) -> str:
        """``<run>/step-00001200``, as it was published."""
        return self.manifest.id

    @overload
    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 64,
        stop: str | Sequence[str] = (),
        stream: Literal[False] = False,
        **sampling: Any,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str],
        *,
        max_new_tokens: int = 64,
        stop: str | Sequence[str] = (),
        stream: Literal[False] = False,
        **sampling: Any,
    ) -> list[str]: ...

    @overload
    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 64,
        stop: str | Sequence[str] = (),
        stream: Literal[True],
        **sampling: Any,
    ) -> Iterator[str]: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        max_new_tokens: int = 64,
        stop: str | Sequence[str] = (),
        stream: bool = False,
        **sampling: Any,
    ) -> str | list[str] | Iterator[str]:
        """Continues one prompt, or many at once, each by itself.

        Args:
            prompt: what is continued; may be empty. What looks like a special token in it is text.
            max_new_tokens: at most so many tokens are written, and no more than the context has room for.
            stop: what ends a text and is not part of it; a special token that is written out means that token.
            stream: gives one prompt's text in pieces, as it is written.
            **sampling: fields of :class:`latentforge.model.sampling.SamplingParams`: temperature (1 by default), top_p,
                top_k, seed and so on. The same seed gives the same text for the same prompt.

        Returns:
            The continuation; of many prompts a list in their order; with ``stream`` an iterator over pieces.

        Raises:
            ValueError: an argument is wrong, or a prompt is too long; the message says which and why.
        """
        params, words = _params(sampling), [stop] if isinstance(stop, str) else list(stop)
        if isinstance(prompt, str):
            text = _Continuation(self, prompt, max_new_tokens, params, words)
            return text.pieces() if stream else text.whole()
        if stream:
            raise ValueError("stream=True takes one prompt; generate() one after the other, or leave stream out")
        texts = [_Continuation(self, each, max_new_tokens, params, words) for each in prompt]
        at_once = min(len(texts), _MOST_AT_ONCE)
        if at_once:
            with self._decoding(at_once) as decoding:
                run([text.request(decoding) for text in texts])
        return [text.text() for text in texts]

    def logprobs(self, text: str) -> list[TextToken]:
        """The exact, teacher-forced log probability of each token of a text behind those before it.

        Raises:
            ValueError: the text is empty, or longer than the context.
        """
        ids = self.encode(text)
        if not ids:
            raise ValueError("the text has no token; give some")
        scoring = score_pieces(self.model, ids)
        while True:
            try:
                next(scoring)
            except StopIteration as done:
                pieces = self.tokenizer.decode_each(ids)
                return [TextToken(*each) for each in zip(ids, pieces, done.value.logprobs, strict=True)]

    def encode(self, text: str) -> list[int]:
        """A prompt's ids, as the student was trained on them."""
        return self.tokenizer.begin(self.tokenizer.encode(text))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that :meth:`save_pretrained` writes where the checkpoint has none."""
        values = card_values(self.model, self.manifest, self.id, NO_LICENSE)
        return super().generate_model_card(*args, **values, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Copies the files that it was loaded from, checked once more: what the manifest says holds for the copy."""
        place = self._files.place
        for name in (*self.manifest.files, MANIFEST):
            target = save_directory / name
            if not target.resolve().is_relative_to(save_directory.resolve()):
                raise CheckpointError(f"the manifest names {name!r}, which is outside of the checkpoint")
            target.parent.mkdir(parents=True, exist_ok=True)
            # Of a hub's model the card may have been edited since.
            if name not in (CARD, MANIFEST):
                target.write_bytes(self._files.read(name))
            elif (place / name).is_file():
                shutil.copyfile(place / name, target)
        if sha256_of(save_directory / MANIFEST) != self._files.digest:
            raise CheckpointError(f"{place / MANIFEST} was changed since it was read; load the student anew")

    @contextmanager
    def _decoding(self, num_texts: int) -> Iterator[BatchDecoding]:
        """Slots for so many texts at once, which are nobody else's meanwhile; those of most texts are kept."""
        decoding = None
        with self._lending:
            if self._idle is not None and self._idle.num_slots >= num_texts:
                decoding, self._idle = self._idle, None
        decoding = decoding or batch_decoding(self.model, num_texts)
        try:
            yield decoding
        finally:
            with self._lending:
                if self._idle is None or self._idle.num_slots < decoding.num_slots:
                    self._idle = decoding


class _Continuation:
    """One prompt's text while it is written."""

    def __init__(
        self, student: LatentStudent, prompt: str, max_tokens: int, params: SamplingParams, stop: Sequence[str]
    ) -> None:
        self._student = student
        self._prompt_ids = student.encode(prompt)
        self._max_tokens = max_tokens
        self._params = params
        words, self._stop_ids = student.tokenizer.stops(stop)
        self._stopping = StoppingText(student.tokenizer, words)
        if max_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_tokens}; ask for at least 1")

    def request(self, decoding: BatchDecoding) -> GenerationRequest:
        end_ids = frozenset({self._student.model.eos_id}) | self._stop_ids
        return GenerationRequest(
            decoding, self._prompt_ids, self._max_tokens, self._params, end_ids=end_ids, stop=self._stopping.read
        )

    def pieces(self) -> Iterator[str]:
        with self._student._decoding(1) as decoding, closing(stream(self.request(decoding))) as written:
            for _ in written:
                yield from filter(None, [self._stopping.take()])
        yield from filter(None, [self._stopping.flush()])

    def whole(self) -> str:
        return "".join(self.pieces())

    def text(self) -> str:
        return self._stopping.take() + self._stopping.flush()


def _params(sampling: dict[str, Any]) -> SamplingParams:
    try:
        return SamplingParams(**sampling)
    except ValidationError as error:
        raise ValueError("; ".join(describe_errors(error))) from None
