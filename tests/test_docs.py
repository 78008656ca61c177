"""What README.md and docs/ tell people to type and to open is there: commands, options, params,
files, tests.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from llm.__main__ import parser

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "LOG.md"),
]
PLACES = "(?:llm|stages|tests|bench|presets|scaling|techniques|docs)"


def found(pattern: str, at_least: int) -> list[tuple[Path, str]]:
    """Page and text of every match; so many there are at the least, or the pattern has grown blind."""
    matches = [
        (page, "".join(match))
        for page in PAGES
        for match in re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(matches) >= at_least
    return matches


def test_commands_have_the_options_that_the_pages_give_them() -> None:
    for _, command in found(r"python -m llm ([a-z][^`\n]*)", 30):
        words = shlex.split(command.split("  ")[0].rstrip(" …|)"), comments=True)
        assert (
            parser().parse_args(words).command == words[0]
        )  # or argparse ends the test with what it says


def test_params_that_are_set_on_a_page_are_in_the_file() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for page, key in found(r"(?:-S|--set-param) '?([\w.]+)=", 8):
        node: Any = params
        for part in key.split("."):
            assert part in node, (page, key)
            node = node[part]


def test_the_readme_states_the_defaults_of_the_file() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    rows = re.findall(
        r"^\| (`[\w.`, ]+`) \| ([\d., ]+) \|", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) >= 7
    for cell, values in rows:
        first, *others = re.findall(r"`([\w.]+)`", cell)
        names = [first, *(f"{first.rpartition('.')[0]}.{other}" for other in others)]
        for name, value in zip(names, values.split(", "), strict=True):
            node: Any = params
            for part in name.split("."):
                node = node[part]
            assert float(value.replace(",", "")) == node, name


def test_files_that_are_named_on_a_page_are_there() -> None:
    named = found(rf"(?<![\w./-])({PLACES}/[\w./-]*\w)(?![\w<*…])", 100)
    assert [
        (page, path) for page, path in named if "NAME" not in path and not (ROOT / path).exists()
    ] == []


def test_links_lead_somewhere() -> None:
    links = [
        (page, link) for page, link in found(r"\]\(([^)#]+)(?:#[^)]*)?\)", 12) if "://" not in link
    ]
    assert [(page, link) for page, link in links if not (page.parent / link).exists()] == []


def test_make_has_the_goals_of_the_pages() -> None:
    goals = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {goal for _, goal in found(r"`make ([a-z]+)|^make ([a-z]+)", 8)} <= set(goals)


def test_tests_that_are_named_on_a_page_are_there() -> None:
    tests = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")
    )
    for page, name in found(r"pytest tests/[\w./]+ -k (\w+)", 1):
        assert re.search(rf"def test_\w*{name}", tests), (page, name)
