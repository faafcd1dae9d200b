"""Compressed models of transformers in folders that `from_pretrained` loads."""
