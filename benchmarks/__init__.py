"""Measurements of neuralcodec, alone and against ordinary codecs. Each command is ``python -m benchmarks.NAME``."""
