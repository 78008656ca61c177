"""`python -m llm serve`: OpenAI's HTTP interface of llama.cpp, vLLM or `transformers`, for this machine alone."""
