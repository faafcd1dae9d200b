"""Ways to keep the numbers of factors, one per file."""
