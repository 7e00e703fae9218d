"""Metrics, statistics, calibration, plots and linear probes: numbers in, numbers out."""
