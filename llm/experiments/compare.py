"""`python -m llm compare A B …`: tests which scores of experiments differ by more than chance.

Each is a DVC experiment, a git revision or `workspace`. Their predictions, which the evaluate stage
keeps, are paired by example and tested with `llm.evaluate.paired`. The first is compared with each
of the others. `--html` writes a page.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm.errors import UserError
from llm.evaluate import metric_names, metrics
from llm.evaluate.metrics import Measure
from llm.evaluate.paired import Difference, differences, holm
from llm.evaluate.test_sets import POSITIVE
from llm.experiments.revisions import Revision
from llm.runtime.io import write_where_told

PREDICTIONS = "metrics/predictions"
TEXTS = {"id", "prompt", "prediction", "references"}
NOT_SCORES = TEXTS | {"log_likelihoods", "mean_length", *metric_names.COUNTS}
LEVEL = 0.05
PLOT = "compare.svg"  # default file of the figure

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Row:
    """One score of one task, B against A."""

    task: str
    difference: Difference
    significant: bool  # among all rows together: `paired.holm`

    @property
    def better(self) -> str:
        """`A`, `B`, or empty if no difference is significant."""
        if not self.significant:
            return ""
        lower_is_better = self.difference.metric in metric_names.LOWER_IS_BETTER
        return "B" if (self.difference.difference < 0) == lower_is_better else "A"


@dataclass(frozen=True)
class Comparison:
    """All rows, and notes on what could not be compared."""

    rows: list[Row]
    notes: list[str]


def compare(
    a: Revision,
    b: Revision,
    models: tuple[str, str],
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare every score that both revisions have: `models[0]` of A with `models[1]` of B.

    Raises:
        UserError: a revision has no predictions of the model, or no task is common to both.
    """
    sides = [_predictions(revision, model) for revision, model in zip((a, b), models, strict=True)]
    notes = [f"{task}: only one side has it" for task in sorted(set(sides[0]) ^ set(sides[1]))]
    scored: list[tuple[str, Difference]] = []
    for task in sorted(set(sides[0]) & set(sides[1])):
        one, two, note = pair(sides[0][task], sides[1][task])
        notes += [f"{task}: {note}"] if note else []
        if one["id"]:
            pairs = differences(*measures(one, two), resamples, confidence, seed)
            scored += [(task, difference) for difference in sorted(pairs, key=_position)]
    if not scored:
        raise UserError(
            f"{a.name} and {b.name} share no test example: there is nothing to compare. {' '.join(notes)}"
        )
    significant = holm([difference.p_value for _, difference in scored], LEVEL)
    return Comparison(
        [Row(task, d, flag) for (task, d), flag in zip(scored, significant, strict=True)], notes
    )


def _predictions(revision: Revision, model: str) -> dict[str, Columns]:
    """Return task → columns of a model's predictions file."""
    import pyarrow.parquet as pq

    prefix = f"{PREDICTIONS}/{model.replace(':', '_')}-"
    paths = revision.list(PREDICTIONS)
    own = [path for path in paths if path.startswith(prefix)]
    if not own:
        models = sorted({Path(path).stem.rsplit("-", 1)[0] for path in paths})
        others = f"; it has those of {', '.join(models)}." if models else ": it is not evaluated."
        raise UserError(f"{revision.name} has no predictions of {model!r} in {PREDICTIONS}{others}")
    return {
        Path(path).stem.removeprefix(Path(prefix).name): pq.read_table(
            io.BytesIO(revision.read(path))
        ).to_pydict()
        for path in own
    }


def pair(a: Columns, b: Columns) -> tuple[Columns, Columns, str]:
    """Return the rows of the examples that both have with equal references, and a note.

    The rows have the same order. The note says how many were left out; empty for none.
    """
    same = [name for name in ("references", "tokens", "bytes") if name in a and name in b]
    position = {id: i for i, id in enumerate(b["id"])}
    kept = [
        (i, position[id])
        for i, id in enumerate(a["id"])
        if id in position and all(a[name][i] == b[name][position[id]] for name in same)
    ]
    rows = [
        {name: [column[pair[side]] for pair in kept] for name, column in (a, b)[side].items()}
        for side in (0, 1)
    ]
    longest = max(len(a["id"]), len(b["id"]))
    note = f"{len(kept)} examples are common to both; one side has {longest}"
    return rows[0], rows[1], note if len(kept) < longest else ""


def measures(a: Columns, b: Columns) -> tuple[list[Measure], list[Measure]]:
    """Return the measures of two predictions files of the same examples."""
    sides: tuple[list[Measure], list[Measure]] = ([], [])
    names = {*a.get("prediction", ()), *b.get("prediction", ())} if "accuracy" in a else set()
    positive = (a.get(POSITIVE, [None])[0], b.get(POSITIVE, [None])[0])
    for columns, own in zip((a, b), sides, strict=True):
        if "nats" in columns:
            nats, tokens, size = (
                np.array(columns[name], dtype=np.float64) for name in ("nats", "tokens", "bytes")
            )
            own += [metrics.loss(nats, tokens, ""), metrics.perplexity(nats, tokens, "")]
            own.append(metrics.bits_per_byte(nats, size, ""))
            continue
        for name, column in columns.items():
            if name not in NOT_SCORES and isinstance(column[0], float | int):
                own.append(metrics.mean(name, "", column))
        predictions, references = columns["prediction"], columns["references"]
        if "bleu" in columns:  # the column is of sentences, the score of the corpus
            own[:] = [m for m in own if m.name != "bleu"]
            own.append(metrics.bleu(predictions, references))
        if "accuracy" in columns:
            labels = [texts[0] for texts in references]
            same = positive[0] if positive[0] == positive[1] else None
            own += metrics.classification(predictions, labels, "", names, same)[1:]
    return sides


def _position(difference: Difference) -> tuple[int, str]:
    return metric_names.rank(difference.metric), difference.metric


# -- for people


def show(
    names: Sequence[str],
    models: tuple[str, str],
    plot: str | None = None,
    as_json: bool = False,
    html: str | None = None,
) -> None:
    """Compare revisions with the first of them, as tables, JSON, a page or a figure.

    Raises:
        UserError: fewer than two are named, more than two for a plot, or one cannot be compared.
    """
    if len(names) < 2:
        raise UserError(
            "compare: two or more experiments are needed, e.g. `python -m llm compare main exp-abc`."
        )
    if plot and (html or len(names) > 2):
        raise UserError(
            "compare: --plot draws two experiments; --html has the plots of any number."
        )
    if len(names) == 2 and not html and not as_json:
        plot = plot or PLOT
    with ExitStack() as stack:
        first, *others = [stack.enter_context(Revision(name)) for name in names]
        if html:
            _page(first, others, models, Path(html))
            return
        comparisons = [compare(first, other, models) for other in others]
    titles = [(f"{names[0]}, {models[0]}", f"{name}, {models[1]}") for name in names[1:]]
    if as_json:
        values = [
            _to_json(names[0], b, models, c) for b, c in zip(names[1:], comparisons, strict=True)
        ]
        print(json.dumps(values[0] if len(values) == 1 else values, indent=2))
    else:
        print("\n\n".join(text(each, pair) for each, pair in zip(comparisons, titles, strict=True)))
    if plot:
        from llm.report.figures.curves import for_file
        from llm.report.figures.differences import draw

        svg = draw(_drawn(comparisons[0]), f"{names[1]} − {names[0]}")
        write_where_told(plot, for_file(svg).encode())
        print(f"plot: {plot}", file=sys.stderr)


def _to_json(a: str, b: str, models: tuple[str, str], comparison: Comparison) -> dict[str, Any]:
    rows = [
        {"task": r.task, **asdict(r.difference), "better": r.better or None}
        for r in comparison.rows
    ]
    return {"a": [a, models[0]], "b": [b, models[1]], "rows": rows, "notes": comparison.notes}


def _drawn(comparison: Comparison) -> list[tuple[str, Difference, str]]:
    return [(row.task, row.difference, row.better) for row in comparison.rows]


def _page(first: Revision, others: Sequence[Revision], models: tuple[str, str], path: Path) -> None:
    """Write the page; a comparison that cannot be made becomes a note on it."""
    from llm.experiments import comparison_page

    experiments = [comparison_page.read(revision) for revision in (first, *others)]
    for number, (revision, experiment) in enumerate(
        zip((first, *others), experiments, strict=True)
    ):
        try:
            experiment.answers = _predictions(revision, models[bool(number)])
            if number:
                comparison = compare(first, revision, models)
                experiment.differences = _drawn(comparison)
                experiment.notes += [f"{revision.name}: {note}" for note in comparison.notes]
        except UserError as error:
            experiment.notes.append(str(error))
    comparison_page.write(experiments, path, models)
    print(f"{path}: {path.stat().st_size / 1000:,.0f} kB, one file that needs nothing beside it")


def text(comparison: Comparison, names: tuple[str, str]) -> str:
    """Return the comparison as a table."""
    lines = [["", "A", "B", "B − A", "95 % interval", "p", ""]]
    task = ""
    for row in comparison.rows:
        d = row.difference
        if row.task != task:
            task = row.task
            unit = "windows" if d.metric in metric_names.LOWER_IS_BETTER else "examples"
            lines.append([f"{task} · {d.n} {unit}"])
        digits = 3 if max(abs(d.a), abs(d.b)) < 10 else 1
        interval = f"[{d.low:+.{digits}f}, {d.high:+.{digits}f}]"
        verdict = f"{row.better} is better" if row.better else "no difference shown"
        values = (f"{d.a:.{digits}f}", f"{d.b:.{digits}f}", f"{d.difference:+.{digits}f}")
        lines.append([f"  {d.metric}", *values, interval, f"{d.p_value:.4f}", verdict])
    widths = [max(len(line[i]) for line in lines if len(line) > 1) for i in range(len(lines[0]))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        if len(line) > 1
        else line[0]
        for line in lines
    ]
    significant, count = sum(bool(row.better) for row in comparison.rows), len(comparison.rows)
    foot = (
        f"{significant} of {count} differences are significant: approximate randomisation, two-sided, at "
        f"{100 * LEVEL:.0f} % for all of them together (Holm)."
    )
    head = [f"A: {names[0]}", f"B: {names[1]}", ""]
    notes = [f"note: {note}" for note in comparison.notes]
    return "\n".join([*head, *(line.rstrip() for line in table), "", foot, *notes])
