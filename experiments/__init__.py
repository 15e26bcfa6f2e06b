"""Experiments: many models, trained by the trainer's own commands, measured side by side."""
