"""Renders finished numbers as PDF and HTML; computes none."""
