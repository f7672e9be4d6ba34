"""Every setting of a run: config and card."""
