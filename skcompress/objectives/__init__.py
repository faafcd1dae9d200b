"""What a search asks of a model, one quantity a file."""
