"""Measuring what a model knows: answer scoring, metrics and held-out suites."""
