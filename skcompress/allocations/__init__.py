"""Ways to divide a budget over the layers, one per file."""
