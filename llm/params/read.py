"""The reader of `params.yaml`, and its messages about invalid values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from llm.addresses import refuse_credentials
from llm.errors import UserError
from llm.params import depth
from llm.params.download import DocsSource, FilesSource, HubSource, MixtureSource
from llm.params.schema import Params
from llm.params.section import nearest
from llm.runtime.io import read_yaml

TAGS: dict[str, type[BaseModel]] = {
    "docs": DocsSource,
    "files": FilesSource,
    "hub": HubSource,
    "mixture": MixtureSource,
}


def load(path: str | Path = "params.yaml") -> Params:
    """Return the checked content of params.yaml.

    Raises:
        UserError: the file is missing or not YAML, or a key is unknown, missing or out of range;
            the message lists every such key with what was expected.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise UserError(
            f"{path}: expected sections such as `model:` and `pretrain:`, found {type(data).__name__}."
        )
    return parse(data, str(path))


def parse(data: dict[str, Any], where: str = "params") -> Params:
    """Return checked params, each `auto` replaced by what model.depth gives.

    Args:
        data: the content of params.yaml.
        where: its origin, for messages.

    Raises:
        UserError: as in `load`.
    """
    try:
        refuse_credentials(data, where)
    except ValueError as error:
        raise UserError(str(error)) from None
    data = depth.resolve(data, where)
    try:
        return Params.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(error, data, where)) from None


def _explain(error: ValidationError, data: dict[str, Any], where: str) -> str:
    lines = []
    for item in error.errors():
        loc = [str(part) for part in item["loc"] if part not in TAGS] or ["params"]
        key, kind = ".".join(loc), item["type"]
        if kind == "extra_forbidden":
            lines.append(f"  {key}: unknown key{nearest(loc[-1], _names_at(item['loc'], data))}")
        elif kind == "missing":
            lines.append(f"  {key}: missing")
        elif kind == "value_error":
            prefix = "" if loc == ["params"] else f"{key}: "
            lines.append(f"  {prefix}{item['ctx']['error']}")
        elif kind == "union_tag_invalid":
            tag = item["ctx"]["tag"]
            lines.append(
                f"  {key}.source: {tag!r} is unknown; expected docs, files, hub or mixture"
            )
        elif kind == "union_tag_not_found":
            lines.append(f"  {key}.source: missing; expected docs, files, hub or mixture")
        else:
            lines.append(f"  {key}: {item['msg']}, found {item['input']!r}")
    plural = "s" if len(lines) > 1 else ""
    return f"{where}: {len(lines)} invalid value{plural}:\n" + "\n".join(lines)


def _names_at(loc: tuple[Any, ...], data: dict[str, Any]) -> list[str]:
    """Return the valid names beside an unknown key, for the suggestion."""
    if loc and loc[0] == "download" and len(loc) > 2:
        tag = data["download"][loc[1]].get("source")
        if tag == "mixture" and len(loc) > 5:  # download, name, mixture, sources, its name, …
            tag = data["download"][loc[1]]["sources"][loc[4]].get("source")
        return list(TAGS[tag].model_fields) if tag in TAGS else []
    node: Any = Params
    for part in loc[:-1]:
        field = (
            node.model_fields.get(part)
            if isinstance(node, type) and issubclass(node, BaseModel)
            else None
        )
        if field is None:
            return []
        node = field.annotation
    return list(node.model_fields) if isinstance(node, type) and issubclass(node, BaseModel) else []
