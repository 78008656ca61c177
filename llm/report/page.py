"""The report: one HTML page that needs nothing beside it, its Markdown twin, and the figures as
files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.evaluate import metric_names
from llm.params import Params
from llm.report import commentary, scores, techniques, tuning
from llm.report.collect import collect
from llm.report.figures import curves, predictions, scaling
from llm.report.format import (
    cell,
    compact,
    duration,
    fence,
    interval,
    number,
    percent,
    setting,
    signed,
    size,
    title,
    tuned,
)
from llm.runtime.io import write_bytes
from llm.tracking import metrics_files

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    params: Params, directory: Path, run: dict[str, str] | None = None
) -> dict[str, Any]:
    """Write report.html, report.md, figures/*.svg and numbers/*.json into an existing directory.

    The numbers are the files `metrics/*.json` as the stages wrote them. Git has the summary too,
    but a remote of DVC has only what an output holds, and without it the run cache there would not
    know the report.

    Returns:
        What `collect` found.
    """
    data = collect(params, run)
    for name, content in metrics_files.files().items():
        write_bytes(directory / "numbers" / name, content)
    drawn = curves.draw(data["curves"], data["evaluate"], data["corpus"])
    drawn |= predictions.draw(data["predictions"]) | techniques.draw(data["techniques"])
    drawn |= tuning.draw(data["studies"])
    if data["scaling"]:
        drawn["scaling"] = scaling.draw(data["scaling"])
    for name, svg in drawn.items():
        write_bytes(directory / "figures" / f"{name}.svg", curves.for_file(svg).encode())
    write_bytes(directory / "report.html", render("page.html.j2", data, drawn).encode())
    write_bytes(directory / "report.md", render("page.md.j2", data, drawn).encode())
    return data


def render(template: str, data: dict[str, Any], drawn: dict[str, str]) -> str:
    """Fill a template. In HTML every value is escaped; in Markdown the filters `cell` and `fence`
    do it.
    """
    made = {
        "interval": interval,
        "summary": summary(data),
        "tiles": tiles(data),
        "tables": score_tables(
            data["evaluate"], data["contamination"], data["contamination_by_text"]
        ),
        "apart": contamination_apart,
        "signatures": signatures(data["evaluate"]),
        "source_of": source_of,
        "licences": licences(data["manifests"]),
        "lower": metric_names.LOWER_IS_BETTER,
        "remarks": commentary.remarks(data["evaluate"], data["comparison"], percent, number),
        "by_source": commentary.by_source(data["evaluate"]),
    }
    return fill(template, data | made, drawn)


def fill(template: str, data: dict[str, Any], drawn: dict[str, str]) -> str:
    """A template of this folder with these values, the drawings, the style sheet and a counter for
    captions.
    """
    from markupsafe import Markup

    inline = {name: Markup(curves.for_page(name, svg)) for name, svg in drawn.items()}
    counts: dict[str, int] = {}

    def caption(kind: str) -> str:
        counts[kind] = counts.get(kind, 0) + 1
        return f"{kind} {counts[kind]}."

    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    page = environment(".html" in template).get_template(template)
    return page.render(**data, figures=inline, style=style, caption=caption)


def environment(autoescape: bool) -> Environment:
    """Jinja's, for the templates of this folder, with the filters that they use."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(
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
    return made


# -- what the first screen says


def summary(data: dict[str, Any]) -> list[str]:
    """The main results, a sentence each."""
    lines: list[str] = []
    pretrain, finetune, evaluate = (
        data["metrics"].get(name) or {} for name in ("pretrain", "finetune", "evaluate")
    )
    model = data["model"]
    if model and pretrain:
        source = data["manifests"].get("pretrain", {})
        text = f", drawn from {size(source['bytes'])} of text" if source.get("bytes") else ""
        lines.append(
            f"A decoder-only transformer of {number(model['total'])} parameters was trained "
            f"on {number(pretrain['tokens'])} tokens{text}; its loss on held-out documents is "
            f"{number(pretrain['val_loss'])} nats per token, or {number(pretrain['val_bits_per_byte'])} bits per byte."
        )
    if finetune:
        lines.append(
            f"It was then finetuned on {number(finetune['examples'])} examples, training "
            f"{number(finetune['trainable_parameters'])} parameters ({percent(finetune['trainable_fraction'])})."
        )
    for task in scores.tasks(evaluate):
        metric = scores.headline(evaluate, task)
        if metric and (line := _result(evaluate, task, metric)):
            share = data["contamination"].get(task)
            lines.append(line if share is None else f"{line[:-1]}; contamination {percent(share)}.")
    if line := commentary.forgetting(data["comparison"], number):
        lines.append(line)
    if data["contamination"]:
        task, worst = max(data["contamination"].items(), key=lambda item: item[1])
        lines.append(
            f"At most {percent(worst)} of a task's test examples ({title(task).lower()}) share 13 words in a row with "
            "the training text."
            if worst
            else "No test example shares 13 words in a row with the training text."
        )
    known = [timing for timing in data["timing"].values() if timing]
    if known:
        lines.append(
            f"The stages that were timed here took {duration(sum(t['seconds'] for t in known))} together and at most "
            f"{size(max(t['peak_memory_bytes'] for t in known))} of memory, on {known[-1]['device']}."
        )
    return lines


def _result(evaluate: dict[str, Any], task: str, metric: str) -> str | None:
    """Finetuned (or base) against what it has to beat."""
    name = "finetuned" if scores.score(evaluate, "finetuned", task, metric) else "base"
    own = scores.score(evaluate, name, task, metric)
    if own is None:
        return None
    interval = (
        f" ({number(own['low'])} to {number(own['high'])})" if own.get("low") is not None else ""
    )
    line = f"{title(task)}: {metric_names.label(metric)} {number(own['value'])}{interval} for the {name} model"
    if name == "finetuned" and (before := scores.score(evaluate, "base", task, metric)):
        line += f", {number(before['value'])} before finetuning"
    sign = -1 if metric in metric_names.LOWER_IS_BETTER else 1
    others = [
        (m, s["value"])
        for m in scores.models(evaluate)
        if (s := scores.score(evaluate, m, task, metric))
    ]
    baselines = [(m, value) for m, value in others if m.startswith("baseline:")]
    if baselines:
        best, value = max(baselines, key=lambda item: sign * item[1])
        line += f", {number(value)} for the strongest baseline ({best.removeprefix('baseline:').replace('_', ' ')})"
    return line + "."


def tiles(data: dict[str, Any]) -> list[tuple[str, str]]:
    """(figure, what it is) for the strip below the title."""
    found: list[tuple[str, str]] = []
    if data["model"]:
        found.append((compact(data["model"]["total"]), "parameters"))
    if pretrain := data["metrics"].get("pretrain"):
        found.append((compact(pretrain["tokens"]), "training tokens"))
        found.append((number(pretrain["val_bits_per_byte"]), "bits per byte, held out"))
    for task in scores.tasks(data["evaluate"]):
        metric = scores.headline(data["evaluate"], task)
        own = scores.score(data["evaluate"], "finetuned", task, metric) if metric else None
        if own and metric and metric not in metric_names.LOWER_IS_BETTER:
            found.append(
                (number(own["value"]), f"{metric_names.label(metric)}, {title(task).lower()}")
            )
    return found


# -- tables


def score_tables(
    evaluate: dict[str, Any], contamination: dict[str, float], by_text: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """One table a task: its metrics, and rows of cells {value, low, high, best} or None for each
    model.

    Beside a model's scores stands the share of the test examples that its own training text
    contains in part: the base model has seen the pretraining text, the finetuned one both; what a
        rule without training has seen is none.
    """
    pretraining = by_text.get("pretraining", contamination)
    tables = []
    for task in scores.tasks(evaluate):
        names = scores.metrics(evaluate, task)
        winners = {metric: scores.best(evaluate, task, metric) for metric in names}
        rows, examples = [], set()
        for model in scores.models(evaluate):
            cells: list[dict[str, Any] | None] = []
            for metric in names:
                found = scores.score(evaluate, model, task, metric)
                if found is not None and found.get("n") is not None:
                    examples.add(found["n"])
                cells.append(
                    {**found, "best": model in winners[metric]} if found is not None else None
                )
            if any(cells):
                seen = {"base": pretraining, "finetuned": contamination}.get(model, {})
                rows.append({"model": model, "cells": cells, "contamination": seen.get(task)})
        tables.append({"task": task, "metrics": names, "rows": rows, "n": sorted(examples)})
    return tables


def contamination_apart(task: str, by_text: dict[str, dict[str, float]]) -> str:
    """`(pretraining 1.0 %, finetuning 0.3 %)`, or nothing where it was not told apart."""
    sides = [
        f"{side} {percent(shares[task])}" for side, shares in by_text.items() if task in shares
    ]
    return f"({', '.join(sides)})" if sides else ""


def signatures(evaluate: dict[str, Any]) -> list[dict[str, Any]]:
    """How each score was made, once for all metrics made alike, in the order of the tables.

    Returns:
        {scores: [[task, metric]], common: what holds for every model, models: what does not, by
        model}; a note's number is its place.
    """
    found: list[dict[str, Any]] = []
    for task in scores.tasks(evaluate):
        for metric in scores.metrics(evaluate, task):
            parts = {
                model: str(text).split("|")
                for model in scores.models(evaluate)
                if (text := (scores.score(evaluate, model, task, metric) or {}).get("signature"))
            }
            if not parts:
                continue
            first, *others = parts.values()
            common = [part for part in first if all(part in other for other in others)]
            own = {
                model: "|".join(p for p in text if p not in common) for model, text in parts.items()
            }
            # A baseline's name says how it was made.
            own = {model: text for model, text in own.items() if text not in ("", model)}
            note = {"common": "|".join(common), "models": own}
            same = next(
                (other for other in found if {**note, "scores": other["scores"]} == other), None
            )
            if same is None:
                found.append(same := {**note, "scores": []})
            same["scores"].append([task, metric])
    return found


def source_of(manifest: dict[str, Any]) -> str:
    """Where a dataset came from, in a few words."""
    source = manifest.get("source")
    if not isinstance(source, dict):
        return str(source or "unknown")
    match source.get("source"):
        case "docs":
            return "documentation inside the installed packages"
        case "files":
            return "files: " + ", ".join(map(str, source.get("paths", [])))
        case "mixture":
            return "mixture of " + ", ".join(source.get("sources", {}))
        case "hub":
            return f"Hugging Face: {source.get('id')}, {source.get('config') or 'default'}"
    return str(source.get("source", "unknown"))


def licences(manifests: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The licence of each dataset; one that was already said is named by its first dataset."""
    first: dict[str, str] = {}
    found = {}
    for name, manifest in manifests.items():
        text = manifest.get("licence") or "unknown"
        found[name] = (
            f"as {title(first[text]).lower()}" if text in first and len(text) > 40 else text
        )
        first.setdefault(text, name)
    return found
