"""The commands of `python -m llm`, one a file; torch is imported when a command runs."""
