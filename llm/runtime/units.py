"""Estimates as people read them: two digits and a unit."""

from __future__ import annotations


def size(number: float) -> str:
    """Return bytes for people, decimal: 1.4 GB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= scale:
            return (
                f"{number / scale:.1f} {unit}"
                if number < 10 * scale
                else f"{number / scale:,.0f} {unit}"
            )
    return f"{number / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """Return seconds for people: 45 s, 3.2 min, 5.1 h, 12.0 days."""
    for unit, scale in (("days", 172800.0), ("h", 7200.0), ("min", 120.0)):
        if seconds >= scale:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.1f} {unit}"
    return f"{seconds:.0f} s"
