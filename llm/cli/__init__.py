"""`python -m llm`'s commands that ask a model: their arguments, and what they do. Torch is imported when they run."""
