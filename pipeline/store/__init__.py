"""Versioned artifacts, their tables, their lineage, and MLflow as the index over them."""
