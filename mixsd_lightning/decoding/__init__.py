"""Batched decoding over key-value caches, in pure torch: one context or two contexts that share a completion."""
