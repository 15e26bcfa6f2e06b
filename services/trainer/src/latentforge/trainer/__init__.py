"""trainer: trains the autoencoder and the student and publishes checkpoints."""
