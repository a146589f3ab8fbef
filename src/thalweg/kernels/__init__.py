"""Fused kernels, one folder for each backend."""
