"""The presets `presets/NAME.yaml`: changes to params.yaml, whose comments are kept."""

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
REPLACED = (
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
    """Merge `presets/<name>.yaml` into params.yaml and print what changed.

    Raises:
        UserError: the preset, or one of its keys, is unknown; or a value is invalid. params.yaml
            is unchanged then.
    """
    text, changes, _ = _overlaid(name, path)
    write_where_told(path, text.encode())
    for key, before, after in changes:
        print(f"{key}: {_shown(before)} → {_shown(after)}")
    print(f"{len(changes)} values set; `dvc repro` runs what they change.")


def _shown(value: Any) -> str:
    """Return a value as YAML writes it: null, true."""
    # default=float: ruamel has a float type of its own.
    return value if isinstance(value, str) else json.dumps(value, default=float)


def params_with(name: str, path: Path = Path("params.yaml")) -> params.Params:
    """Return params as the preset would make them; raise UserError like `apply_preset`."""
    return _overlaid(name, path)[2]


def _overlaid(name: str, path: Path) -> tuple[str, list[tuple[str, Any, Any]], params.Params]:
    """Return the new text of params.yaml, (key, before, after) of each change, and the params."""
    from ruamel.yaml import YAML

    known = sorted(p.stem for p in FOLDER.glob("*.yaml"))
    if name not in known:
        raise UserError(f"no preset {name!r} in {FOLDER}/; known: {', '.join(known) or 'none'}.")
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
    """Merge in place; return (key, before, after) of each change.

    Sections whose keys the user chooses (sources, tasks, checkpoints, variants) are replaced.
    """
    changes = []
    for key, value in overlay.items():
        where = f"{prefix}{key}"
        replaced = where in REPLACED
        if isinstance(value, dict) and isinstance(data.get(key), dict) and not replaced:
            changes += _merge(data[key], value, f"{where}.")
        elif data.get(key) != value:
            changes.append((where, data.get(key), value))
            data[key] = value
    return changes
