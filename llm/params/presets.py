"""Presets: sparse overlays `presets/NAME.yaml`, merged into params.yaml with its comments kept."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from llm import params
from llm.errors import UserError
from llm.runtime.io import parse_yaml, read_yaml, write_where_told

FOLDER = Path("presets")
NULL = "tag:yaml.org,2002:null"
WHOLE = (
    "download",
    "checkpoints",
    "mix.tasks",
    "evaluate.max_new_tokens",
    "evaluate.variants",
    "tokenize.clean.near_duplicates",
)


def list_presets() -> None:
    """Print each preset's name and first comment line."""
    for path in sorted(FOLDER.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[:1]
        print(f"{path.stem:16}{first[0].lstrip('# ') if first else ''}")


def apply_preset(name: str, path: Path = Path("params.yaml")) -> None:
    """Overlay `presets/<name>.yaml` onto params.yaml.

    Raises:
        UserError: no such preset; a key that params do not know; a value that is impossible.
            params.yaml is unchanged.
    """
    text, changes, _ = _overlaid(name, path)
    write_where_told(path, text.encode())
    for key, before, after in changes:
        print(f"{key}: {_shown(before)} → {_shown(after)}")
    print(f"{len(changes)} values set; `dvc repro` runs what they change.")


def _shown(value: Any) -> str:
    """As the file has it: null, true."""
    return (
        value if isinstance(value, str) else json.dumps(value, default=float)
    )  # ruamel's own floats among them


def params_with(name: str, path: Path = Path("params.yaml")) -> params.Params:
    """Params as the preset would make them; the file stays as it is. Raises UserError like
    `apply_preset`.
    """
    return _overlaid(name, path)[2]


def _overlaid(name: str, path: Path) -> tuple[str, list[tuple[str, Any, Any]], params.Params]:
    """Text of params.yaml with the preset on it, (key, before, after) of what that changes, and the
    checked params.
    """
    from ruamel.yaml import YAML

    known = sorted(p.stem for p in FOLDER.glob("*.yaml"))
    if name not in known:
        raise UserError(
            f"no preset {name!r} in {FOLDER}/; there are: {', '.join(known) or 'none'}."
        )
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 200
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(
        type(None), lambda dumper, _: dumper.represent_scalar(NULL, "null")
    )
    data = yaml.load(path.read_text(encoding="utf-8"))
    overlay = read_yaml(FOLDER / f"{name}.yaml")
    changes = list(_merge(data, overlay))
    text = io.StringIO()
    yaml.dump(data, text)
    where = f"params.yaml with presets/{name}.yaml"
    return text.getvalue(), changes, params.parse(parse_yaml(text.getvalue(), where), where)


def _merge(data: Any, overlay: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Overlay in place. What the user names (sources, tasks, checkpoints, variants) is replaced
    whole.
    """
    changes = []
    for key, value in overlay.items():
        where = f"{prefix}{key}"
        whole = where in WHOLE
        if isinstance(value, dict) and isinstance(data.get(key), dict) and not whole:
            changes += _merge(data[key], value, f"{where}.")
        elif data.get(key) != value:
            changes.append((where, data.get(key), value))
            data[key] = value
    return changes
