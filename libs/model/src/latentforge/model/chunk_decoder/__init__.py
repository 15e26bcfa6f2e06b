"""The decoder that makes the logits of K tokens a distribution over chunks."""
