"""The `Modelfile` beside a GGUF file, from which `ollama create` makes a model."""

from __future__ import annotations

from pathlib import Path

from llm.runtime.io import write_bytes
from llm.tokenizer.bpe import SPECIAL, Tokenizer
from llm.tokenizer.pretrained import PretrainedTokenizer

END, USER, ASSISTANT, SYSTEM = SPECIAL
# The chat template of this pipeline's tokenizers in Go's language: Ollama does not run the one in
# the GGUF file.
TEMPLATE = (
    f'{{{{ range .Messages }}}}{{{{ if eq .Role "system" }}}}{SYSTEM}{{{{ .Content }}}}'
    f'{{{{ else if eq .Role "user" }}}}{USER}{{{{ .Content }}}}'
    f'{{{{ else if eq .Role "assistant" }}}}{ASSISTANT} {{{{ .Content }}}}{END}{{{{ end }}}}'
    f"{{{{ end }}}}{ASSISTANT}"
)


def write_modelfile(path: Path, model: Path, context: int) -> None:
    """Write `Modelfile` into the directory of the GGUF file `path`.

    Args:
        path: the GGUF file.
        model: directory of the model with its tokenizer. One of another project has no template
            here; Ollama recognises those of widespread models.
        context: tokens that the model was trained for.
    """
    lines = [f"FROM ./{path.name}"]
    if not isinstance(Tokenizer.load(model), PretrainedTokenizer):
        lines += [
            "# In Ollama, special tokens typed in a message are special tokens: remove them from",
            "# text that you do not trust.",
        ]
        lines += [f'TEMPLATE """{TEMPLATE}"""', f"PARAMETER stop {END}"]
    lines += [f"PARAMETER num_ctx {context}", "PARAMETER temperature 0"]
    write_bytes(path.parent / "Modelfile", ("\n".join(lines) + "\n").encode())
