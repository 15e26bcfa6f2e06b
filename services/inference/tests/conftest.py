from tests.tiny_checkpoints import checkpoints, one_thread, publish, tokenizer_json

__all__ = ["checkpoints", "one_thread", "publish", "tokenizer_json"]
