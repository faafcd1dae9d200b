"""What says how much each number of a weight matters, one per file."""
