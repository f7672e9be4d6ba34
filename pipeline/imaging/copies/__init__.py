"""The same picture twice."""
