"""Decoding of many texts at once, each in a slot of memory that is allocated once."""
