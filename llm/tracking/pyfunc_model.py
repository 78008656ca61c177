"""The model that MLflow serves: `mlflow models serve -m models:/llm@champion --env-manager local`.

MLflow runs this file when it loads a logged model; the package `llm` and the model directory travel
with it."""

from __future__ import annotations

from pathlib import Path

import mlflow

# What `params` of a request may hold, with the value where it does not; MLflow drops what its
# signature does not name.
PARAMS = {"max_new_tokens": 64, "temperature": 0.0, "top_p": 1.0, "seed": 0}


class FinetunedModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Answers to prompts, in the chat format that the model was finetuned on."""

    # From type hints MLflow would make a schema that refuses plain lists; without them it warns,
    # unless told so.
    _skip_type_hint_validation = True

    def load_context(self, context):  # type: ignore[no-untyped-def]
        """Read the model directory that was logged as the artifact `model`."""
        from llm.generation.loaded_models import stop_ids
        from llm.model.hf_files import load_model
        from llm.parallel import hardware
        from llm.tokenizer.bpe import Tokenizer

        directory = Path(context.artifacts["model"])
        self.model = load_model(directory, hardware.device())
        self.tokenizer = Tokenizer.load(directory)
        self.stop_ids = stop_ids(directory, self.tokenizer)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Answer prompts, a list of strings or a table of one column, with a list of strings.

        Prompt i is drawn with the seed + i, where the temperature is above 0.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE, which the server answers as status 400, with
                what is wrong.
        """
        from llm.errors import UserError
        from llm.generation.generate import complete
        from llm.generation.request import Request
        from llm.params import Decoding

        chosen = PARAMS | (params or {})
        temperature, top_p = float(chosen["temperature"]), float(chosen["top_p"])
        column = model_input.iloc[:, 0] if hasattr(model_input, "iloc") else model_input
        limit, seed = int(chosen["max_new_tokens"]), int(chosen["seed"])
        try:
            if limit < 1 or seed < 0:
                raise UserError(
                    f"max_new_tokens is {limit} and seed {seed}; expected at least 1 and at least 0."
                )
            settings = Decoding(temperature=temperature, top_p=top_p) if temperature else Decoding()
            requests = [
                Request(self.tokenizer.chat_ids(str(text)), limit, settings, seed + i)
                for i, text in enumerate(column)
            ]
            answers = complete(self.model, requests, self.stop_ids, self.tokenizer.decode_response)
        except (UserError, ValueError) as error:
            raise mlflow.exceptions.MlflowException.invalid_parameter_value(str(error)) from None
        return [answer.text for answer in answers]


mlflow.models.set_model(FinetunedModel())
