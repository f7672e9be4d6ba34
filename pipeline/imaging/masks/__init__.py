"""Masks: which structure each pixel of an image shows, read, checked by geometry, and written."""
