"""Inference measured beside transformers, vLLM and a token-level student, in one run on one machine."""
