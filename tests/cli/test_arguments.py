"""Numbers that an option cannot take are refused with the option's name, before anything is read."""

from __future__ import annotations

import argparse
from importlib import import_module

import pytest

from llm.__main__ import COMMANDS, parser

WRONG = [
    (
        ["generate", "a", "--seed", "-1"],
        "argument --seed: '-1'; expected a whole number of at least 0",
    ),
    (
        ["generate", "a", "--seed", "1.5"],
        "argument --seed: '1.5'; expected a whole number of at least 0",
    ),
    (["chat", "--seed", "-1"], "argument --seed: '-1'; expected a whole number of at least 0"),
    (["plan", "--gpus", "0"], "argument --gpus: '0'; expected a whole number of at least 1"),
    (["plan", "--price", "-2"], "argument --price: '-2'; expected a number of at least 0"),
    (["plan", "--price", "nan"], "argument --price: 'nan'; expected a number of at least 0"),
    (["seeds", "--run", "0"], "argument --run: '0'; expected a whole number of at least 1"),
    (["status", "--watch", "inf"], "argument --watch: 'inf'; expected a number of at least 0.1"),
    (["status", "--watch", "-1"], "argument --watch: '-1'; expected a number of at least 0.1"),
]


@pytest.mark.parametrize(
    ("options", "message"), WRONG, ids=[" ".join(options) for options, _ in WRONG]
)
def test_a_number_that_makes_no_sense_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(options)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_other_numbers_are_taken() -> None:
    assert parser().parse_args(["generate", "a", "--seed", str(2**70)]).seed == 2**70
    assert parser().parse_args(["plan", "--gpus", "8", "--price", "2.5"]).price == 2.5
    assert parser().parse_args(["chat"]).seed is None


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_of_a_command_hides_its_function(command: str) -> None:
    """An option `--run` once did: the namespace had one attribute for both."""
    subparsers = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    options = subparsers.choices[command.replace("_", "-")]
    assert options.get_default("entry") is import_module(f"llm.cli.{command}").run
    assert "entry" not in {action.dest for action in options._actions}


def test_seeds_run_only_where_a_number_is_given() -> None:
    assert parser().parse_args(["seeds"]).run is None
    assert parser().parse_args(["seeds", "--run", "5"]).run == 5
