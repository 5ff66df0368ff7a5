"""Evaluation of models: bits per byte, calibration, metrics of answers, and standard suites."""
