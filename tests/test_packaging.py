"""The distribution: its console command, and the lint commands that people, hooks and CI run."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module

import yaml

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_console_command_starts_the_module_that_python_m_llm_starts() -> None:
    scripts = PROJECT["project"]["scripts"]
    assert set(scripts) == {PROJECT["project"]["name"]}
    module, _, function = scripts[PROJECT["project"]["name"]].partition(":")
    assert module == "llm.__main__"
    assert callable(getattr(import_module(module), function))


def test_the_citation_has_the_version_and_the_licence_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = PROJECT["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_the_package_says_that_it_has_types() -> None:
    assert (ROOT / "llm/py.typed").is_file()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["llm"]


def test_a_commit_is_checked_by_the_tools_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    wanted = [line.strip().lstrip("@").split()[:2] for line in recipe[1].splitlines()]
    entries = [hook["entry"].split()[:2] for hook in hooks["repos"][0]["hooks"]]
    assert entries == wanted
