"""Training side by side with peers: `python bench/train.py speed|shakespeare|memory|overhead|recipe|all`.

Prints Markdown tables and keeps the figures in bench/results/train.json; docs/BENCH.md has those of one machine and
says how each is measured. Never run by tests.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import speed

SECTIONS = ("speed",)


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=(*SECTIONS, "all", "show"), help="show: print the stored tables")
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT; without it no such row")
    parser.add_argument("--sizes", nargs="+", default=["5M", "25M"], choices=["5M", "25M"], help="of speed")
    parser.add_argument("--rounds", type=int, default=5, help="of speed: how often everyone takes a turn")
    parser.add_argument(
        "--keep", type=Path, metavar="PATH", help="work here instead of in a temporary folder; keeps logs"
    )
    asked = parser.parse_args()
    if asked.nanogpt:
        asked.nanogpt = asked.nanogpt.resolve()
        if not (asked.nanogpt / "train.py").is_file():
            parser.error(f"--nanogpt {asked.nanogpt}: no train.py there; expected a checkout of karpathy/nanoGPT")
    return asked


def main() -> None:
    asked = arguments()
    wanted = SECTIONS if asked.section in ("all", "show") else (asked.section,)
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = asked.keep.resolve() if asked.keep else Path(temporary)
        if asked.section != "show" and "speed" in wanted:
            speed.run(folder / "speed", asked.nanogpt, asked.sizes, asked.rounds)
    for name in wanted:
        print("\n" + sys.modules[name].show() + "\n")


if __name__ == "__main__":
    main()
