"""Batched decoding over key-value caches, in pure torch: greedy answers, and mixtures of two contexts."""
