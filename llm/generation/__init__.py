"""Decoding of many requests in one cache, each with its own settings and seed."""
