"""Batched forward passes: prepared images, feature vectors and predictions."""
