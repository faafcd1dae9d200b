"""Compressed models on disk: written whole or not at all, read without pickle."""
