"""Pixels in, checked arrays out."""
