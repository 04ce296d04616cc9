"""What a run learns to predict, one objective a file."""
