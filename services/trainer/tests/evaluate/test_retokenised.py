"""A teacher with another tokenizer than the model's."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.evaluate.retokenised import retokenised

Ids = Sequence[Sequence[int]]


class Asked:
    """A score that keeps what it was asked and gives each token its place in the text."""

    def __call__(self, prompts: Ids, texts: Ids) -> list[NDArray[np.float32]]:
        self.prompts, self.texts = prompts, texts
        return [np.arange(len(ids), dtype=np.float32) for ids in texts]


def test_the_teacher_reads_the_same_text_in_its_own_tokens(
    merging_tokenizer: TextTokenizer, tokenizer: TextTokenizer
) -> None:
    asked = Asked()
    prompts, texts = ["def f", "retürn"], ["def (x): ret", "<|im_end|>def"]
    own = merging_tokenizer.encode_texts
    scored = retokenised(asked, merging_tokenizer, tokenizer)(own(prompts), own(texts))
    assert asked.prompts == tokenizer.encode_texts(prompts)
    assert asked.texts == tokenizer.encode_texts(texts)
    # The model's tokens are fewer: what is counted are the teacher's.
    assert [len(s) for s in scored] == [len(t) for t in texts]
    assert [len(ids) for ids in own(texts)] == [len(t) - 2 for t in texts]


def test_prompts_begin_with_each_ones_own_bos(
    merging_tokenizer: TextTokenizer, tokenizer: TextTokenizer, bos_tokenizer_folder: Path
) -> None:
    with_bos = TextTokenizer(bos_tokenizer_folder)
    prompt, text = "def f", "(x)"
    for own, teachers in ((with_bos, merging_tokenizer), (merging_tokenizer, with_bos), (with_bos, with_bos)):
        asked = Asked()
        retokenised(asked, own, teachers)([own.begin(own.encode(prompt))], [own.encode(text)])
        assert asked.prompts == [teachers.begin(teachers.encode(prompt))]
        assert asked.texts == [teachers.encode(text)]


def test_an_end_of_text_is_the_teachers_own(merging_tokenizer: TextTokenizer, tokenizer: TextTokenizer) -> None:
    asked = Asked()
    own = TextTokenizer(merging_tokenizer.folder, eos_id=200)
    (body,), (theirs,) = own.encode_texts(["def"]), tokenizer.encode_texts(["def"])
    scored = retokenised(asked, own, tokenizer)([body] * 3, [[*body, 200], [200], []])
    assert asked.texts == [[*theirs, tokenizer.eos_id], [tokenizer.eos_id], []]
    assert [len(s) for s in scored] == [4, 1, 0]
