"""The serving engine: many requests, one loop of steps; ids only."""
