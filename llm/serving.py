"""The model that MLflow serves: `mlflow models serve -m models:/llm@champion --env-manager local`.

MLflow runs this file when it loads a logged model; the package `llm` and the model directory travel with it.
"""

from __future__ import annotations

from pathlib import Path

import mlflow

MAX_NEW_TOKENS = 64  # `params` of a request may hold another `max_new_tokens`


class FinetunedModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Greedy answers to prompts, in the chat format that the model was finetuned on."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        """Read the model directory that was logged as the artifact `model`."""
        from llm.data.tokenizer import Tokenizer
        from llm.model.files import load_model

        directory = Path(context.artifacts["model"])
        self.model = load_model(directory)
        self.tokenizer = Tokenizer.load(directory)

    # Without type hints, which MLflow would turn into a schema that refuses plain lists.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Answer prompts, a list of strings or a table of one column, with a list of strings."""
        from llm.generate import generate

        column = model_input.iloc[:, 0] if hasattr(model_input, "iloc") else model_input
        prompts = [str(text) for text in column]
        limit = int((params or {}).get("max_new_tokens", MAX_NEW_TOKENS))
        ids = [self.tokenizer.chat_ids(prompt) for prompt in prompts]
        answers = generate(self.model, ids, limit, self.tokenizer.eos_id)
        return [self.tokenizer.decode(answer) for answer in answers]


mlflow.models.set_model(FinetunedModel())
