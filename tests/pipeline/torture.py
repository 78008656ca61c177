"""Asking `tests.pipeline.victims` for harm, and comparing what is left with what an unharmed run
leaves.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import warm
from tests.pipeline.victims import PARTIAL, POINTS
from tests.pipeline.workspace import ROOT, environment

OUTPUTS = {
    "pretrain": ["models/base", "metrics/pretrain.json", "metrics/pretrain_history.csv"],
    "finetune": [
        "models/adapter",
        "models/finetuned",
        "metrics/finetune.json",
        "metrics/finetune_history.csv",
    ],
    "align": [
        "models/aligned_adapter",
        "models/aligned",
        "metrics/align.json",
        "metrics/align_history.csv",
    ],
}
STAGES = ("pretrain", "finetune")  # those of the plain pipeline
MOMENTS = [
    *((point, when) for point in POINTS for when in ("before", "after")),
    *((point, "within") for point in PARTIAL),
]
ATTEMPTS = 20  # to make one kill hit


class Victims:
    """The process that forks stages, and the checkout that they run in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        env = {**environment(ROOT), "DVC_ROOT": str(root), "LLM_STATE_SECONDS": "0"}
        self.process = subprocess.Popen(
            [warm.python(), "-m", "tests.pipeline.victims"],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=120)

    def run(
        self,
        stage: str,
        kill: dict[str, Any] | None = None,
        full: dict[str, Any] | None = None,
        fails: bool = False,
    ) -> dict[str, Any]:
        """Run a stage; it must end well, or by the kill, or with `fails` in an error. Adds its
        output as "log".
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {"stage": stage, "cwd": str(self.root), "kill": kill, "full": full}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        answer["log"] = (self.root / "child.log").read_text(errors="replace")
        assert answer["killed"] or (answer["status"] != 0) == fails, answer["log"][-4000:]
        return answer

    def forget(self, stage: str) -> None:
        """As before the first run of the stage: no state, no open execution, no outputs."""
        shutil.rmtree(self.root / ".state" / stage, ignore_errors=True)
        for execution in (self.root / ".state" / "mlflow").glob("*.json"):
            execution.unlink()
        self.forget_outputs(stage)

    def forget_outputs(self, stage: str) -> None:
        """As DVC before each run of a stage."""
        for output in OUTPUTS[stage]:
            path = self.root / output
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def digests(self, stage: str) -> dict[str, str]:
        """sha256 of every file of the stage's outputs, and of what was left beside them."""
        paths = [self.root / output for output in OUTPUTS[stage]]
        paths += [
            left for folder in ("models", "metrics") for left in (self.root / folder).glob(".*.tmp")
        ]
        files = sorted(
            f for p in paths for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()
        )
        assert files
        return {
            str(f.relative_to(self.root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files
        }

    def checkpoint(self, stage: str) -> int:
        """The step of the newest whole checkpoint; 0 where there is none."""
        return max(
            (int(p.name[5:]) for p in (self.root / ".state" / stage).glob("*/step-????????")),
            default=0,
        )


def moments(trace: list[list[Any]], choose: random.Random) -> Iterator[dict[str, Any]]:
    """Kills without end: each kind of moment in turn, and after each fourth one at any time.

    Among the calls of a point every function has its turn, whether it makes one of them or a
    hundred. A call is named by its function and its number among that function's: the order of
    calls of two threads is another one in each run.
    `trace`: [point, function, seconds] of each call of an unkilled run.
    """
    left: dict[str, list[tuple[str, int]]] = defaultdict(list)
    while True:
        for i, (point, when) in enumerate(MOMENTS):
            if not left[point]:
                left[point] = turns([function for p, function, _ in trace if p == point], choose)
            function, nth = left[point].pop()
            yield {"point": point, "when": when, "function": function, "nth": nth}
            if i % 4 == 3:
                yield at_any_time(trace, choose)


def turns(functions: list[str], choose: random.Random) -> list[tuple[str, int]]:
    """The calls of these functions, each with its number from 1; the last ones are of different
    functions.
    """
    rounds = []
    for function, count in sorted(
        Counter(functions).items()
    ):  # so that a seed means the same kills in each run
        numbers = list(range(1, count + 1))
        choose.shuffle(numbers)
        rounds += [
            (-turn, choose.random(), (function, number)) for turn, number in enumerate(numbers)
        ]
    return [call for _, _, call in sorted(rounds)]


def at_any_time(trace: list[list[Any]], choose: random.Random) -> dict[str, Any]:
    return {"seconds": choose.uniform(trace[0][2], trace[-1][2])}


def torture(
    stage: str, victims: Victims, kills: int, seed: int = 0
) -> tuple[list[dict[str, str]], list[str]]:
    """Kill and resume until `kills` kills have hit, comparing after each resumption.

    Every fourth time the resumption is killed as well before it may end. A kill that did not hit,
    since the process ended first, is made again at another call of its kind.

    Returns:
        What hit, kill by kill; and what differed, resumption by resumption (nothing, as is
        promised).
    """
    choose = random.Random(f"{stage} {seed}")
    victims.forget(stage)
    victims.run(stage)  # makes MLflow's database, which no later run does
    victims.forget(stage)
    whole = victims.run(stage)
    expected = victims.digests(stage)
    hits: list[dict[str, str]] = []
    differences: list[str] = []
    plan = moments(whole["trace"], choose)

    def hit(kill: dict[str, Any]) -> bool:
        killed = victims.run(stage, kill)["killed"]
        if killed:
            hits.append(killed)
        return bool(killed)

    for number in range(kills):
        if len(hits) >= kills:
            break
        kill = next(plan)
        for _ in range(ATTEMPTS):
            victims.forget(stage)
            if hit(kill):
                break
            if "seconds" in kill:
                kill = at_any_time(whole["trace"], choose)
            else:
                same = [
                    (kill["point"], kill["function"]) == (point, function)
                    for point, function, _ in whole["trace"]
                ]
                kill["nth"] = choose.randint(1, sum(same))
        else:
            raise AssertionError(f"no kill at {kill} hit in {ATTEMPTS} attempts")
        # At one of the calls that every resumption makes; those at the end have one checkpoint less
        # to write.
        again = number % 4 == 3 and hit(
            {
                "point": "fsync",
                "when": choose.choice(("before", "after")),
                "nth": choose.randint(1, 8),
            }
        )
        step = victims.checkpoint(stage)
        ended = victims.run(stage)
        if (f"resumes after step {step:,} " in ended["log"]) != (step > 0):
            differences.append(f"{hits[-1]}: not continued after step {step}")
        if (digests := victims.digests(stage)) != expected:
            names = sorted(name for name, _ in digests.items() ^ expected.items())
            differences.append(
                f"{hits[-2:] if again else hits[-1]}: {', '.join(dict.fromkeys(names))}"
            )
    return hits, differences


def summary(hits: list[dict[str, str]], differences: list[str]) -> str:
    """One line for people."""
    when = Counter(hit["when"] for hit in hits)
    return (
        f"torture: {len(hits)} kills ({when['before']} before, {when['within']} within, {when['after']} after a call; "
        f"{when['at']} at random times), {len(differences) or '0 differing bytes'}"
        + (" resumptions that differ" if differences else "")
    )
