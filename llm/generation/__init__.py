"""Decoding: many requests side by side on one cache, each with settings and a seed of its own."""
