"""`python -m llm serve`: OpenAI's HTTP interface on the continuous batching of `llm.generation`."""
