"""Kernels, each a file: what the outer loss predicts with."""
