"""Kernels, one per file: what the outer loss predicts with."""
