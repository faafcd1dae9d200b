"""What budgets are counted in, one per file."""
