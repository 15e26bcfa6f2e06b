"""One evaluation from beginning to end: everything that applies to a model, into one results file."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from latentforge.core.devices import choose_device
from latentforge.core.results import Result
from latentforge.model.ablation import Part, part_worth
from latentforge.model.devices import device_description
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.metrics.brier import BrierScore
from latentforge.text.packed import PackedData
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.data.sequence_order import step_generator
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluate.brier import PrefixGroup, choose_prefixes, evaluate_brier, model_values
from latentforge.trainer.evaluate.checkpoint import Subject
from latentforge.trainer.evaluate.drafts import Drafts, evaluate_drafts
from latentforge.trainer.evaluate.estimate import Estimate, mean
from latentforge.trainer.evaluate.full_kl import NUM_SEQUENCES, FullKl, evaluate_full_kl
from latentforge.trainer.evaluate.generations import (
    TEMPERATURES,
    PromptSet,
    Score,
    Text,
    TextScore,
    choose_prompts,
    evaluate_generations,
    score_texts,
)
from latentforge.trainer.evaluate.likelihood import Likelihood, evaluate_likelihood, teacher_likelihood
from latentforge.trainer.evaluate.mixture import evaluate_mixture
from latentforge.trainer.evaluate.reconstruction import evaluate_reconstruction
from latentforge.trainer.evaluate.report import Figures, results_of
from latentforge.trainer.evaluate.retokenised import retokenised
from latentforge.trainer.evaluate.stages import stage
from latentforge.trainer.evaluate.teacher import EvaluationTeacher
from latentforge.trainer.results import EvaluatedModel, Evaluation, EvaluationData
from latentforge.trainer.targets.batches import held_out_batch, held_out_sequences


@dataclass(frozen=True)
class Options:
    """How much is looked at; the defaults are what figures are compared at.

    Attributes:
        sequences: of the likelihood, evenly spread.
        bound_chunks: chunks of an energy head's bounds.
        draft_contexts: drafts; 0 leaves them out.
        brier_positions, brier_samples: places in the text, and samples at each; 0 positions leave BrierLM out.
        prompts, prompt_tokens, new_tokens: of the generations; 0 prompts leave them out.
        top_k: entries of a teacher's row.
        seed: of everything random.
    """

    sequences: int = 40
    bound_chunks: int = 512
    draft_contexts: int = 256
    brier_positions: int = 2048
    brier_samples: int = 2
    prompts: int = 32
    prompt_tokens: int = 64
    new_tokens: int = 128
    top_k: int = 20
    seed: int = 0


def run_evaluation(
    subject: Subject,
    data: PackedData,
    options: Options,
    settings: TrainerSettings,
    *,
    with_teacher: bool,
    teacher_tokenizer: TextTokenizer | None,
    out: Path,
    command: str,
    console: Console,
) -> tuple[Path, list[Result]]:
    """Measures, and writes ``out/eval_<time>.json``; gives its path and results.

    A teacher whose tokenizer, ``teacher_tokenizer``, is not the subject's only judges what is written.

    Raises:
        TrainerError: the data, the teacher and the subject do not fit, or the teacher is needed and none answers.
        TeacherError: the teacher refused, or the gateway is lost.
        ValueError: too little data for an interval.
    """
    if subject.model is None and not with_teacher:
        raise TrainerError("--no-teacher leaves out the teacher, which is to be evaluated; leave the option out")
    teachers = teacher_tokenizer or subject.tokenizer
    same = teachers.fingerprint == subject.tokenizer.fingerprint
    if not same and not with_teacher:
        raise TrainerError("--teacher-tokenizer and --no-teacher exclude each other; leave one out")
    if not same and subject.model is None:
        raise TrainerError(
            f"--teacher-tokenizer is {teachers.folder}, but the teacher itself is to be evaluated, whose tokenizer is "
            f"{subject.tokenizer.folder}; leave the option out and set TOKENIZER_PATH"
        )
    device = torch.device(choose_device("device", "auto", torch.cuda.device_count()))
    if subject.model is not None:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(settings.trainer_cuda_memory_fraction)
        subject.model.to(device)
    vocab_size = subject.model.vocab_size if subject.model is not None and same else None
    teacher_or_none: AbstractContextManager[EvaluationTeacher | None] = nullcontext()
    if with_teacher:
        teacher_or_none = EvaluationTeacher(settings, teachers, vocab_size, options.top_k)
    with teacher_or_none as teacher:
        score: Score | None = None if teacher is None else teacher.score
        if score is not None and not same:
            score = retokenised(score, subject.tokenizer, teachers)
        figures = _Evaluation(subject, data, options, teacher if same else None, score, console).run()
        figures.teacher_tokens = not same
        about_teacher = None if teacher is None else teacher.name
    results = results_of(figures, options.seed)
    path = Evaluation(
        name="eval",
        command=command,
        device=device_description(device),
        seed=options.seed,
        results=tuple(results),
        checkpoint=EvaluatedModel(
            id=subject.id,
            kind=subject.kind,
            chunk_size=subject.chunk_size,
            parameters=None if subject.model is None else sum(p.numel() for p in subject.model.parameters()),
            tokenizer_fingerprint=subject.tokenizer.fingerprint,
        ),
        teacher=about_teacher,
        teacher_tokenizer_fingerprint=None if about_teacher is None else teachers.fingerprint,
        data=EvaluationData(
            folder=str(data.folder),
            source=data.meta.source,
            source_sha256=data.meta.source_sha256,
            split=data.meta.split,
            sequence_length=data.meta.sequence_length,
            tokens=len(figures.likelihood.nats),
        ),
        options=asdict(options),
    ).write(out)
    return path, results


class _Evaluation:
    """Has a teacher where that has the subject's tokenizer, and a score wherever what is written can be judged."""

    def __init__(
        self,
        subject: Subject,
        data: PackedData,
        options: Options,
        teacher: EvaluationTeacher | None,
        score: Score | None,
        console: Console,
    ) -> None:
        self._subject, self._data, self._options = subject, data, options
        self._teacher, self._score, self._console = teacher, score, console
        self._sequences = held_out_sequences(data, options.sequences)

    def run(self) -> Figures:
        options, model = self._options, self._subject.model
        # Chosen first: what is too short is said before anything is computed.
        prompts = None
        if options.prompts:
            prompts = choose_prompts(self._data, options.prompts, options.prompt_tokens, options.new_tokens)
        brier = self._brier()
        batches = self._batches()
        bounds: dict[int, Likelihood] = {}
        if model is None:
            likelihood = teacher_likelihood(batches)
        else:
            with stage(self._console, "likelihood", len(batches)) as advance:
                likelihood = evaluate_likelihood(model, batches, seed=options.seed, on_batch=advance)
        if isinstance(model, LatentModel) and model.student.config.head == "energy":
            with stage(self._console, "mixture bound", len(batches)) as advance:
                bounds = evaluate_mixture(
                    model, batches, num_chunks=options.bound_chunks, seed=options.seed, on_batch=advance
                )
        tightest = bounds[max(bounds)] if bounds else likelihood
        figures = Figures(
            likelihood,
            tightest.bits_per_byte(self._subject.tokenizer.num_bytes, options.seed),
            self._worth(batches, likelihood),
            bounds,
            self._drafts(),
            brier,
            full_kl=self._full_kl(),
        )
        if isinstance(model, LatentModel):
            with stage(self._console, "reconstruction", len(batches)) as advance:
                figures.reconstruction = evaluate_reconstruction(model, batches, seed=options.seed, on_batch=advance)
        if prompts is not None:
            self._add_generations(prompts, figures)
        return figures

    def _worth(self, batches: list[StudentBatch], likelihood: Likelihood) -> dict[Part, Estimate]:
        """What each part of the model is worth; the teacher is none that could be taken apart."""
        model, seed = self._subject.model, self._options.seed
        if model is None:
            return {}
        device = model.device
        with stage(self._console, "parts", 2 * len(batches)) as advance:
            worth = part_worth(model, batches, lambda index: step_generator(seed, index, device), advance)
        return {part: mean(lost, likelihood.sequences, seed) for part, lost in worth.items()}

    def _batches(self) -> list[StudentBatch]:
        """One sequence each, with the teacher's rows where it has the subject's tokenizer."""
        if self._teacher is None:
            return [held_out_batch(sequence, None) for sequence in self._sequences]
        with stage(self._console, "teacher's rows", len(self._sequences)) as advance:
            rows = self._teacher.rows([s.tolist() for s in self._sequences], on_sequence=advance)
        return [held_out_batch(*pair) for pair in zip(self._sequences, rows, strict=True)]

    def _full_kl(self) -> FullKl | None:
        options, model, teacher = self._options, self._subject.model, self._teacher
        if model is None or teacher is None:
            return None
        if not teacher.gives_whole_rows:
            about = teacher.about
            self._console.print(
                f"kl_to_teacher is a lower bound: the gateway gives at most {about.max_top_k} of {about.vocab_size} "
                f"entries a row; with MAX_TOP_K={about.vocab_size} it gives kl_full as well",
                highlight=False,
            )
            return None
        with stage(self._console, "full KL", min(NUM_SEQUENCES, len(self._sequences))) as advance:
            return evaluate_full_kl(
                model, self._sequences, teacher, top_k=options.top_k, seed=options.seed, on_sequence=advance
            )

    def _brier(self) -> BrierScore | None:
        options, model, k = self._options, self._subject.model, self._subject.chunk_size
        if not options.brier_positions or (model is None and not self._can_sample("BrierLM")):
            return None
        groups = self._prefixes(options.brier_positions)
        if model is not None:
            values = model_values(model, options.brier_samples)
            with stage(self._console, "BrierLM", len(groups)) as advance:
                return evaluate_brier(values, groups, chunk_size=k, seed=options.seed, on_group=advance)
        assert self._teacher is not None
        with stage(self._console, "BrierLM", sum(len(g.prefixes) for g in groups)) as advance:
            values = self._teacher.brier_values(options.brier_samples, on_prompt=advance)
            return evaluate_brier(values, groups, chunk_size=k, seed=options.seed)

    def _drafts(self) -> Drafts | None:
        options, model, teacher = self._options, self._subject.model, self._teacher
        if not options.draft_contexts or model is None or teacher is None:
            return None
        if isinstance(model, LatentModel) and model.student.config.head == "energy":
            return None
        groups = self._prefixes(options.draft_contexts)
        with stage(self._console, "drafts", len(groups)) as advance:
            return evaluate_drafts(model, groups, teacher.score, seed=options.seed, on_group=advance)

    def _prefixes(self, num: int) -> list[PrefixGroup]:
        tokenizer = self._subject.tokenizer
        return choose_prefixes(
            self._sequences,
            num,
            chunk_size=self._subject.chunk_size,
            prefix_tokens=self._options.prompt_tokens,
            eos_id=tokenizer.eos_id,
            bos_id=tokenizer.bos_id,
            seed=self._options.seed,
        )

    def _add_generations(self, prompts: PromptSet, figures: Figures) -> None:
        """What the model writes, what its teacher writes, and what the text says behind the same prompts."""
        options, model, eos_id = self._options, self._subject.model, self._subject.tokenizer.eos_id
        references = [Text(ids, False) for ids in prompts.references.tolist()]
        figures.reference = score_texts(prompts.prompts, references, eos_id, self._score, seed=options.seed)
        of_teacher: dict[float, TextScore] = {}
        if (model is None or self._teacher is not None) and self._can_sample("generations"):
            of_teacher = self._teacher_generations(prompts.prompts)
        if model is None:
            figures.generations = of_teacher
            return
        figures.teacher_generations = of_teacher
        with stage(self._console, "generations", len(TEMPERATURES)) as advance:
            figures.generations = evaluate_generations(
                model,
                prompts.prompts,
                options.new_tokens,
                score=self._score,
                seed=options.seed,
                on_temperature=advance,
            )

    def _teacher_generations(self, prompts: Tensor) -> dict[float, TextScore]:
        options, teacher = self._options, self._teacher
        assert teacher is not None
        found = {}
        with stage(self._console, "teacher's generations", len(TEMPERATURES) * len(prompts)) as advance:
            for temperature in TEMPERATURES:
                texts = teacher.continuations(prompts, options.new_tokens, temperature, options.seed, on_prompt=advance)
                own = [text for (text,) in texts]
                eos_id = self._subject.tokenizer.eos_id
                found[temperature] = score_texts(prompts, own, eos_id, teacher.score, seed=options.seed)
        return found

    def _can_sample(self, what: str) -> bool:
        if self._teacher is not None and self._teacher.about.can_generate:
            return True
        self._console.print(f"warning: this teacher cannot generate; {what} of its own are left out", highlight=False)
        return False
