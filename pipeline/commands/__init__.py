"""What a command does that is not the pipeline."""
