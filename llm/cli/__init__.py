"""The commands of `python -m llm`, one a file. Torch and MLflow are imported when a command runs."""
