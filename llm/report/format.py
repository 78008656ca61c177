"""Values as the report writes them: the filters of its templates."""

from __future__ import annotations

import math
import re
from typing import Any


def number(value: Any) -> str:
    """Format an integer with thousands separators, a float with its significant digits."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and 1000 <= abs(value) < 1e9):
        return f"{int(value):,}"
    if not math.isfinite(value):
        return "not finite"
    magnitude = abs(value)
    if magnitude >= 1e9 or 0 < magnitude < 5e-4:
        mantissa, exponent = f"{value:.2e}".split("e")
        power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{mantissa} × 10{power}".replace("-", "−")
    digits = next(
        (digits for limit, digits in ((1000, 0), (100, 1), (10, 2)) if magnitude >= limit), 3
    )
    return f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float) -> str:
    """Format a difference of scores with its sign; a negligible one becomes +0.000."""
    return f"{value:+.{3 if abs(value) < 10 else 1}f}".replace("-", "−")


def chance(p_value: float) -> str:
    """Format a p-value: p = 0.012, or p < 0.001."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def setting(value: Any) -> str:
    """Format a param as in params.yaml."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def tuned(value: Any) -> str:
    """Format a tuned param: a fraction with four digits, else as in params.yaml."""
    return f"{value:.4g}" if isinstance(value, float) else setting(value)


def compact(value: float) -> str:
    """Format a count in three digits: 5.5 M, 1.2 k."""
    for limit, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return str(value)


def size(value: float | None) -> str:
    """Format bytes in decimal units: B, kB, MB, GB."""
    if value is None:
        return "–"
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """Format seconds as s, min or h."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def percent(fraction: float | None) -> str:
    """Format a fraction in percent, with one more digit if it is small."""
    if fraction is None:
        return "–"
    return f"{100 * fraction:.{0 if fraction == 0 else 1 if fraction >= 0.01 else 2}f} %"


def title(name: str) -> str:
    """Turn `question_answering` into Question answering."""
    words = str(name).replace("_", " ")
    return words[:1].upper() + words[1:]


def cell(text: Any) -> str:
    """Escape text for a cell of a Markdown table, on one line."""
    flat = " ".join(str(text).split())
    return re.sub(
        r"([\\`*_\[\]|])",
        r"\\\1",
        flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
    )


def fence(text: str) -> str:
    """Wrap text in a Markdown code block whose fence is longer than any in the text."""
    marks = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{marks}text\n{text}\n{marks}"


def interval(score: dict[str, float]) -> str:
    """Format a value with its interval, four digits each."""
    return "{value:.4g} [{low:.4g}, {high:.4g}]".format(**score)


def source_of(manifest: dict[str, Any]) -> str:
    """Return where a dataset came from, in a few words."""
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
    """Return each dataset's licence; a long text that repeats refers to its first dataset."""
    first: dict[str, str] = {}
    licence_of = {}
    for name, manifest in manifests.items():
        text = manifest.get("licence") or "unknown"
        licence_of[name] = (
            f"as {title(first[text]).lower()}" if text in first and len(text) > 40 else text
        )
        first.setdefault(text, name)
    return licence_of
