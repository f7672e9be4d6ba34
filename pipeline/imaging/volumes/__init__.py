"""Slices become volumes."""
