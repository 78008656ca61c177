"""The report: one self-contained HTML page, its Markdown twin, and the figures as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm.evaluate import metric_names
from llm.params import Params
from llm.report import commentary, scores, techniques, tuning
from llm.report.collect import collect
from llm.report.figures import curves, predictions, scaling
from llm.report.format import chance, interval, licences, source_of
from llm.report.render import fill
from llm.runtime.io import write_bytes
from llm.tracking import metrics_files


def write_report(
    params: Params, directory: Path, run: dict[str, str] | None = None
) -> dict[str, Any]:
    """Write report.html, report.md, figures/*.svg and numbers/*.json into an existing directory.

    `numbers` holds copies of the stages' `metrics/*.json`. Git does not track most of them, and a
    DVC remote stores only declared outputs: without the copies, a report restored from the remote
    would lack its numbers.

    Returns:
        The data that `collect` read.
    """
    data = collect(params, run)
    for name, content in metrics_files.files().items():
        write_bytes(directory / "numbers" / name, content)
    drawings = curves.draw(data["curves"], data["evaluate"], data["corpus"])
    drawings |= predictions.draw(data["predictions"]) | techniques.draw(data["techniques"])
    drawings |= tuning.draw(data["studies"])
    if data["scaling"]:
        drawings["scaling"] = scaling.draw(data["scaling"])
    for name, svg in drawings.items():
        write_bytes(directory / "figures" / f"{name}.svg", curves.for_file(svg).encode())
    write_bytes(directory / "report.html", render("page.html.j2", data, drawings).encode())
    write_bytes(directory / "report.md", render("page.md.j2", data, drawings).encode())
    return data


def render(template: str, data: dict[str, Any], drawings: dict[str, str]) -> str:
    """Render one form of the report.

    HTML escapes every value; Markdown escapes through the filters `cell` and `fence`.
    """
    values = {
        "interval": interval,
        "summary": commentary.summary(data),
        "tiles": commentary.tiles(data),
        "lead": scores.lead(data["evaluate"], data["comparison"]),
        "first_samples": {task: rows[len(rows) // 2] for task, rows in data["samples"].items()},
        "tables": scores.tables(
            data["evaluate"],
            data["contamination"],
            data["contamination_by_text"],
            data["comparison"],
        ),
        "chance": chance,
        "apart": commentary.contamination_by_side,
        "signatures": scores.signatures(data["evaluate"]),
        "source_of": source_of,
        "licences": licences(data["manifests"]),
        "lower": metric_names.LOWER_IS_BETTER,
        "remarks": commentary.remarks(data["evaluate"], data["comparison"]),
        "by_source": commentary.by_source(data["evaluate"]),
    }
    return fill(template, data | values, drawings)
