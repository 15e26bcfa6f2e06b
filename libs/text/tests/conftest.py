from tests.fixtures import corpus, packed, tokenizer, tokenizer_folder

__all__ = ["corpus", "packed", "tokenizer", "tokenizer_folder"]
