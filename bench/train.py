"""Training side by side with peers: `python bench/train.py
speed|shakespeare|memory|overhead|recipe|all`.

Prints Markdown tables and keeps the figures in bench/results/train.json; docs/BENCH.md has those of
one machine and says how each is measured. Never run by tests.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import memory
import overhead
import recipe
import shakespeare
import speed

SECTIONS = {
    "speed": speed,
    "shakespeare": shakespeare,
    "memory": memory,
    "overhead": overhead,
    "recipe": recipe,
}


def arguments() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "section", choices=(*SECTIONS, "all", "show"), help="show: print the stored tables"
    )
    parser.add_argument(
        "--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT; without it no such row"
    )
    parser.add_argument(
        "--text", type=Path, metavar="PATH", help="shakespeare: its text; recipe: bytes to learn"
    )
    parser.add_argument(
        "--sizes", nargs="+", default=list(speed.SPEED), choices=list(speed.SPEED), help="of speed"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="how often everyone takes a turn (speed, memory, overhead)",
    )
    parser.add_argument(
        "--ladder", nargs="*", type=int, default=[], metavar="N", help="shakespeare: lengths to try"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=shakespeare.REACHES,
        help="shakespeare: of ours to nanoGPT's loss; 0: none",
    )
    parser.add_argument(
        "--long",
        type=int,
        help="shakespeare: of ours for nanoGPT's time (default: from step times)",
    )
    parser.add_argument(
        "--slices", type=int, default=10, help="shakespeare: slices in which the runs alternate"
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        default=list(recipe.RUNS),
        help="recipe: reference@RATE@SEED, ours@SEED",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="PATH",
        help="work here, not in a temporary folder; keeps the logs",
    )
    asked = parser.parse_args()
    for path in ("nanogpt", "text", "keep"):
        if getattr(asked, path):
            setattr(asked, path, getattr(asked, path).resolve())
    if asked.nanogpt and not (asked.nanogpt / "train.py").is_file():
        parser.error(
            f"--nanogpt {asked.nanogpt}: no train.py there; expected a checkout of karpathy/nanoGPT"
        )
    return asked


def main() -> None:
    asked = arguments()
    wanted = list(SECTIONS) if asked.section in ("all", "show") else [asked.section]
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = asked.keep or Path(temporary)
        for name in wanted if asked.section != "show" else []:
            match name:
                case "speed":
                    speed.run(folder / name, asked.nanogpt, asked.sizes, asked.rounds)
                case "shakespeare":
                    shakespeare.run(folder / name, asked.nanogpt, asked.text, asked)
                case "memory":
                    memory.run(folder / name, asked.rounds)
                case "overhead":
                    overhead.run(folder / name, asked.rounds)
                case "recipe":
                    recipe.run(folder / name, asked.text, asked.runs)
    for name in wanted:
        print("\n" + SECTIONS[name].show() + "\n")


if __name__ == "__main__":
    main()
