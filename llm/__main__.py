"""Commands around the pipeline; each is a module of llm/cli."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import TextIO

from llm import cli
from llm.runtime.stage import run_stage

COMMANDS = sorted(
    module.name for module in iter_modules(cli.__path__) if module.name != "arguments"
)


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands: the modules of llm/cli, each with its options."""
    parser = argparse.ArgumentParser(prog="python -m llm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"llm.cli.{name}")
        purpose = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name.replace("_", "-"), help=purpose, description=purpose)
        module.add_arguments(command)
        command.set_defaults(entry=module.run)
    return parser


def main() -> None:
    """Parse the arguments and run the command."""
    arguments = parser().parse_args()
    arguments.entry(arguments)


def run() -> None:
    """Run as a command of the shell.

    If the reader stops reading, as in `… | head`, it ends without a message. After a signal it ends
    as after Ctrl-C: the processes that it started end first.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # under nohup it is ignored
            signal.signal(number, _end)
    try:
        run_stage(main, heedless=False)
        sys.stdout.flush()
    except BrokenPipeError:
        _to_devnull(sys.stdout)
        _to_devnull(sys.stderr)
        sys.exit(128 + signal.SIGPIPE)
    except SystemExit:  # with a message for stderr, or after the help
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _to_devnull(sys.stdout)
        raise


def _to_devnull(stream: TextIO) -> None:
    """Send a stream without a reader to /dev/null; Python would report an error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    run()
