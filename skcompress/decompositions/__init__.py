"""Ways to cut a weight into a chain of smaller ones, one per file."""
