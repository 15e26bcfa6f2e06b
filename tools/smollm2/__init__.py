"""SmolLM2-135M-Instruct as a folder of transformers: a pretrained model that every machine with PyPI can have."""
