"""Penalties on weights for training, one idea per file."""
