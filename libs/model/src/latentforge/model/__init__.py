"""Autoencoder, student, losses and sampling."""
