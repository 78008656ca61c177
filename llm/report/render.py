"""Jinja templates of the report and of other pages, with the filters and figures they use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.evaluate import metric_names
from llm.report import scores
from llm.report.figures import curves
from llm.report.format import (
    cell,
    duration,
    fence,
    number,
    percent,
    setting,
    signed,
    size,
    title,
    tuned,
)

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def fill(template: str, data: dict[str, Any], drawings: dict[str, str]) -> str:
    """Render a template with these values, the figures, the style sheet and numbered captions.

    Args:
        template: file name in `templates/`; HTML escapes every value.
        data: values by the name that the template uses.
        drawings: SVG in stand-in colours, by figure name.
    """
    from markupsafe import Markup

    inline = {name: Markup(curves.for_page(name, svg)) for name, svg in drawings.items()}
    counts: dict[str, int] = {}

    def caption(kind: str) -> str:
        counts[kind] = counts.get(kind, 0) + 1
        return f"{kind} {counts[kind]}."

    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    page = environment(".html" in template).get_template(template)
    return page.render(**data, figures=inline, style=style, caption=caption)


def environment(autoescape: bool) -> Environment:
    """Return the Jinja environment of `templates/`, with the filters that they use."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters.update(
        number=number,
        signed=signed,
        size=size,
        duration=duration,
        percent=percent,
        title=title,
        cell=cell,
        fence=fence,
        label=metric_names.label,
        model_label=scores.model_label,
        setting=setting,
        tuned=tuned,
    )
    return jinja
