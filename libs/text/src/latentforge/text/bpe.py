"""Byte-level BPE tokenizers: the shipped teacher's, and larger ones of the same kind."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
# Qwen's split: words with one leading sign, single digits, runs of signs, newlines with their indent, blanks.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Every byte has an id, so that every text can be written.
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, max_length: int = 2048, show_progress: bool = False
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer; the same texts and size give the same one.

    Args:
        texts: what to learn merges from.
        vocab_size: ids, the special tokens' and the bytes' among them.
        max_length: tokens; recorded as the tokenizer's ``model_max_length``.
        show_progress: draws a bar on stderr.

    Raises:
        ValueError: ``vocab_size`` is below :data:`MIN_VOCAB_SIZE`, or the texts have too few pairs to merge for it.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size is {vocab_size}; 256 bytes and {len(SPECIAL_TOKENS)} special tokens need {MIN_VOCAB_SIZE}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (got := tokenizer.get_vocab_size()) < vocab_size:
        raise ValueError(f"the texts give {got} ids, not a vocab_size of {vocab_size}; give more text or ask for fewer")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )
