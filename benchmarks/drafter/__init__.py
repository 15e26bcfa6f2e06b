"""The teacher alone, with drafts of its student, and with those of methods without a model, in one vLLM."""
