"""How large an experiment is."""

from dataclasses import dataclass
from enum import StrEnum

from experiments.plan import Size, Vocabulary

# What is reported on: files of the library, and of packages, that nothing is trained or chosen on.
HELD_OUT = ("stdlib", "packages")


class ScaleName(StrEnum):
    """The scales that a command takes."""

    smoke = "smoke"
    cpu = "cpu"
    gpu = "gpu"


@dataclass(frozen=True)
class Scale:
    """How large an experiment is.

    Attributes:
        token_sizes: of the token-level students.
        student_sizes: of the latent ones.
        fast_sizes: of backbones so large that their steps are most of the time: the largest K and its baseline alone,
            at the large vocabulary; the larger the backbone, the nearer the ratio comes to K.
        chunk_sizes: K.
        tokens: that every model learns from, by vocabulary.
        autoencoder_steps: of every autoencoder.
        ablation_size, ablation_tokens: of the comparisons of objectives and chunk decoders.
        seeds: where a difference is claimed.
        evaluation: options of ``trainer evaluate``.
        speed_tokens, speed_repeats: new tokens of a timed request, and how often each is made.
        sequence_length: of the data.
        batch_size: sequences of a student's step.
        training_text: of what everything is trained, by its file's name.
        mixture_megabytes: of that at most where it is of several sources; None takes all.
        texts: that are packed beside it.
        is_taught: whether the demo's vocabulary has a teacher.
        large_vocabulary, package_megabytes: of the second vocabulary, and the text that it is made of besides the
            standard library.
        learning_rate: of both kinds of student.
        frequent_ids: of how many ids the large vocabulary's students correct the logits; None takes all, which pays
            where there is so much text that rare ids are learnt too.
    """

    token_sizes: tuple[Size, ...]
    student_sizes: tuple[Size, ...]
    fast_sizes: tuple[Size, ...]
    chunk_sizes: tuple[int, ...]
    tokens: dict[Vocabulary, int]
    autoencoder_steps: int
    ablation_size: Size
    ablation_tokens: int
    seeds: tuple[int, ...]
    evaluation: dict[str, int]
    speed_tokens: int
    speed_repeats: int
    sequence_length: int = 2048
    large_vocabulary: int = 32768
    package_megabytes: int = 20
    learning_rate: float = 0.016
    frequent_ids: int | None = 2048
    batch_size: int = 1
    training_text: str = "stdlib-train"
    mixture_megabytes: float | None = None
    texts: tuple[str, ...] = HELD_OUT
    is_taught: bool = True

    def has_teacher(self, vocabulary: Vocabulary) -> bool:
        """Whether models of a vocabulary learn from a teacher, or from text alone."""
        return self.is_taught and vocabulary == "demo"


_EVALUATION = {
    "--sequences": 20,
    "--bound-chunks": 128,
    "--brier-positions": 1024,
    "--prompts": 32,
    "--new-tokens": 128,
}
SCALES: dict[ScaleName, Scale] = {
    # Minutes: shows that every stage works, measures nothing worth knowing.
    ScaleName.smoke: Scale(
        token_sizes=(Size(1, 64), Size(2, 64)),
        student_sizes=(Size(1, 64),),
        fast_sizes=(Size(2, 128),),
        chunk_sizes=(4, 8),
        tokens={"demo": 8_192, "large": 8_192},
        autoencoder_steps=10,
        ablation_size=Size(1, 64),
        ablation_tokens=4_096,
        seeds=(0,),
        evaluation={
            "--sequences": 3,
            "--draft-contexts": 16,
            "--brier-positions": 16,
            "--prompts": 3,
            "--new-tokens": 16,
        },
        speed_tokens=16,
        speed_repeats=2,
        sequence_length=512,
        package_megabytes=1,
    ),
    # Two CPU cores, one to two hours.
    ScaleName.cpu: Scale(
        token_sizes=(Size(1, 64), Size(1, 128), Size(2, 128), Size(3, 192), Size(4, 256)),
        student_sizes=(Size(2, 128), Size(3, 192), Size(4, 256)),
        fast_sizes=(Size(6, 384), Size(8, 512)),
        chunk_sizes=(2, 4, 8),
        tokens={"demo": 409_600, "large": 102_400},
        autoencoder_steps=300,
        ablation_size=Size(3, 128),
        ablation_tokens=409_600,
        seeds=(0, 1, 2),
        evaluation=_EVALUATION,
        speed_tokens=128,
        speed_repeats=5,
    ),
    ScaleName.gpu: Scale(
        token_sizes=(Size(2, 128), Size(4, 256), Size(6, 384), Size(8, 512), Size(12, 768)),
        student_sizes=(Size(4, 256), Size(8, 512), Size(12, 768)),
        fast_sizes=(Size(16, 1024),),
        chunk_sizes=(2, 4, 8),
        tokens={"demo": 20_480_000, "large": 20_480_000},
        autoencoder_steps=3000,
        ablation_size=Size(8, 512),
        ablation_tokens=10_240_000,
        seeds=(0, 1, 2),
        evaluation=_EVALUATION,
        speed_tokens=256,
        speed_repeats=5,
        package_megabytes=120,
        frequent_ids=None,
    ),
}
