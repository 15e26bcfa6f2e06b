"""Many requests with long contexts, K tokens a step beside one: ``make long-context``."""
