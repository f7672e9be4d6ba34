"""Results leave: the folder of predict, pages, and what else carries them to people."""
