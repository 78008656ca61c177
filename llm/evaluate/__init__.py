"""Scores of models and baselines on held-out examples and text, with intervals and measured
contamination.
"""
