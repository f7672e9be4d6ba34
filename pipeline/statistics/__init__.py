"""Metrics, intervals, calibration and the recall certificate: pure functions of numpy arrays."""
