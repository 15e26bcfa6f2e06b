"""Serves the newest checkpoint over REST."""
