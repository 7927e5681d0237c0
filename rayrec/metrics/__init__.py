"""Metrics as pure functions and mergeable states. Knows NumPy and torch only."""

from rayrec.metrics.binary import BinaryMetrics, BinaryResult, CalibrationBin

__all__ = ["BinaryMetrics", "BinaryResult", "CalibrationBin"]
