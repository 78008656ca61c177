"""Kill it anywhere, through DVC: `dvc repro`, `dvc exp run`, `dvc exp run --temp` and a queue
worker.

In each the trainer is killed and then DVC alone, and each time the same command is given again.
What DVC itself does not do, and these tests therefore do by hand:

- A `dvc exp run` that was killed is over: the same command starts a new experiment, and a temporary
  directory is never used again. The training state is found all the same, since it lies in the main
  repository's `.state`.
- A task of the queue whose trainer was killed has failed; one whose worker was killed is shown as
  running until `dvc queue kill NAME`. Neither is tried again: it has to be queued anew, and a new
  worker started for it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.pipeline.workspace import copy, environment, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

STEPS = 80  # time to kill, to stop and to kill again
LONGER = {"pretrain": {"tokens": STEPS * 1024, "eval_every": 50}}


def processes(root: Path) -> dict[int, list[str]]:
    """Command lines by process id of what runs in this checkout or in a temporary one inside it."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd").startswith(str(root)):
                found[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                )
        except OSError:  # it ended, or is another user's
            continue
    return found


def trainers(root: Path) -> list[int]:
    """Process ids; a trainer's child is none, though it looks like one until it has become git or
    the like.
    """
    found = [
        pid
        for pid, words in processes(root).items()
        if any(word.startswith("stages.") for word in words)
    ]
    return [pid for pid in found if parent(pid) not in (None, *found)]


def parent(pid: int) -> int | None:
    """The parent's process id; None where the process has ended."""
    try:
        return int(
            re.findall(r"^PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[0]
        )
    except OSError:
        return None


def ancestors(pid: int) -> Iterator[int]:
    above = parent(pid)
    while above:
        yield above
        above = parent(above)


def dvc_above(pid: int) -> list[int]:
    """DVC's processes that this trainer belongs to, the topmost (a queue's worker) first."""
    return [
        above
        for above in reversed(list(ancestors(pid)))
        if any(
            Path(word).name == "dvc"
            for word in Path(f"/proc/{above}/cmdline").read_text().split("\0")[:2]
        )
    ]


def wait(condition: Callable[[], object], what: str, timeout: float = 240.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s for {what}"
        time.sleep(0.02)


class Flow:
    """A checkout in which DVC is started and killed, with a log, and with an eye on how many
    trainers there are.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.log, self.most = root, root.with_suffix(".log"), 0
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._count, daemon=True)
        self._watch.start()

    def _count(self) -> None:
        while not self._over.wait(0.05):
            self.most = max(self.most, len(trainers(self.root)))

    def start(self, *command: str) -> subprocess.Popen:
        with self.log.open("a") as log:
            return subprocess.Popen(
                command,
                cwd=self.root,
                # A shell that stays between DVC and the trainer, as bash and zsh do not.
                env={
                    **environment(self.root, fresh=True),
                    "LLM_STATE_SECONDS": "0",
                    "SHELL": "/bin/sh",
                },
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self, *command: str) -> None:
        code = self.start(*command).wait(timeout=300)
        assert code == 0, self.log.read_text()[-6000:]

    def text(self) -> str:
        """All that DVC and the stages printed, the queue's too."""
        logs = [self.log, *self.root.glob(".dvc/tmp/exps/run/*/*.out")]
        return "".join(path.read_text(errors="replace") for path in logs)

    def steps(self, stage: str) -> set[Path]:
        return set((self.root / ".state" / stage).glob("*/step-????????"))

    def wait_for_training(self, stage: str) -> int:
        """Wait for another checkpoint than there are; returns the trainer's process id."""
        before = self.steps(stage)
        wait(lambda: self.steps(stage) - before, f"{stage} to train:\n{self.text()[-3000:]}")
        (pid,) = trainers(self.root)
        return pid

    def kill_trainer(self) -> None:
        os.kill(self.wait_for_training("pretrain"), signal.SIGKILL)

    def kill_dvc(self) -> None:
        """DVC alone, which has to be the end of its trainer as well."""
        pid = self.wait_for_training("pretrain")
        for dvc in dvc_above(pid):
            os.kill(dvc, signal.SIGKILL)
        wait(lambda: not trainers(self.root), "the orphan to end")

    def continued(self) -> list[int]:
        """The steps after which pretraining went on."""
        return [
            int(step) for step in re.findall(r"pretrain: resumes after step (\d+) of", self.text())
        ]

    def close(self) -> None:
        self._over.set()
        self._watch.join()
        for pid, words in processes(self.root).items():
            if any("queue-worker" in word for word in words):
                os.kill(pid, signal.SIGTERM)


def hashes(lock: str, *stages: str) -> dict[str, str]:
    """Of the outputs, in a dvc.lock."""
    parsed = yaml.safe_load(lock)["stages"]
    return {out["path"]: out["md5"] for stage in stages for out in parsed[stage]["outs"]}


def repro(root: Path) -> dict[str, str]:
    """`dvc repro` with Ctrl-C, with an orphan that does not end, with SIGTERM to all and with
    SIGKILL to all.
    """
    flow = Flow(root)
    command = ("dvc", "repro", "finetune")

    process = flow.start(*command)
    flow.wait_for_training("pretrain")
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does on Ctrl-C
    assert process.wait(timeout=240) != 0
    (stopped,) = re.findall(
        r"pretrain: stopped after step (\d+); `dvc repro` continues from there", flow.text()
    )

    process = flow.start(*command)
    orphan = flow.wait_for_training("pretrain")
    assert flow.continued() == [int(stopped)]
    assert flow.most == 1
    os.kill(orphan, signal.SIGSTOP)
    process.kill()
    process.wait()
    process = flow.start(*command)
    wait(
        lambda: f"process {orphan} trains the same run; waiting for it" in flow.text(),
        "the successor to wait",
    )
    before = flow.steps("pretrain")
    time.sleep(0.5)
    assert flow.steps("pretrain") == before
    os.kill(orphan, signal.SIGCONT)  # it finds that its parent is dead, saves and ends

    flow.wait_for_training("finetune")
    assert len(flow.continued()) == 2
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=240)
    wait(lambda: not trainers(root), "the trainer to end")
    assert "finetune: stopped after step" in flow.text()

    process = flow.start(*command)
    flow.wait_for_training("finetune")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    flow.run(*command)
    assert flow.text().count("finetune: resumes after step") == 2
    flow.close()
    return hashes((root / "dvc.lock").read_text(), "pretrain", "finetune")


def experiment(root: Path, *options: str) -> dict[str, str]:
    """`dvc exp run`: the trainer killed, then DVC alone, then left alone."""
    flow = Flow(root)
    command = ("dvc", "exp", "run", *options, "-n", "killed", "pretrain")
    process = flow.start(*command)
    flow.kill_trainer()
    assert process.wait(timeout=240) != 0
    process = flow.start(*command)
    flow.kill_dvc()
    process.wait(timeout=240)
    flow.run(*command)
    flow.close()
    steps = flow.continued()
    assert len(steps) == 2
    assert 0 < steps[0] < steps[1] < STEPS
    assert flow.most == 1
    return experiment_hashes(root, "killed")


def experiment_hashes(root: Path, name: str) -> dict[str, str]:
    ref = run(
        root, "git", "for-each-ref", "--format=%(refname)", f"refs/exps/**/{name}"
    ).stdout.split()[0]
    return hashes(run(root, "git", "show", f"{ref}:dvc.lock").stdout, "pretrain")


def queue(root: Path) -> dict[str, str]:
    """A queue worker: the trainer killed, then worker and all, then left alone."""
    flow = Flow(root)
    for harm in (flow.kill_trainer, flow.kill_dvc, lambda: None):
        flow.run("dvc", "exp", "run", "--queue", "-n", "killed", "pretrain")
        flow.run("dvc", "queue", "start")
        harm()
        wait(lambda: not trainers(root), "the trainer to end")
    wait(
        lambda: "/killed" in run(root, "git", "for-each-ref", "refs/exps").stdout, "the experiment"
    )
    flow.close()
    steps = sorted(
        flow.continued()
    )  # the logs of the queue's tasks are named by hashes, not by time
    assert len(steps) == 2
    assert 0 < steps[0] < steps[1] < STEPS
    assert flow.most == 1
    return experiment_hashes(root, "killed")


FLOWS: dict[str, Callable[[Path], dict[str, str]]] = {
    "repro": repro,
    "exp run": experiment,
    "exp run --temp": lambda root: experiment(root, "--temp"),
    "queue": queue,
}


def quiet(root: Path) -> dict[str, str]:
    run(root, "dvc", "repro", "finetune", timeout=300)
    return hashes((root / "dvc.lock").read_text(), "pretrain", "finetune")


@pytest.fixture(scope="module")
def results(
    prepared: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, Future[dict[str, str]]]]:
    """Run the flows of the selected tests, two at a time, since DVC and Python start on one core.

    Yields:
        Output hashes by flow, and those of a run that nothing disturbs as "quiet".
    """
    folder = tmp_path_factory.mktemp("dvc")
    tests = [item for item in request.session.items if "results" in item.fixturenames]  # type: ignore[attr-defined]
    flows = {test.callspec.params["way"]: FLOWS[test.callspec.params["way"]] for test in tests}  # type: ignore[attr-defined]
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(flow, copy(prepared, folder / name.replace(" ", ""), LONGER))
            for name, flow in {**flows, "quiet": quiet}.items()
        }


# Slow: an experiment is a `repro` (the sibling of all) that DVC commits to a ref, in the workspace, in
# a temporary one (tests/tracking/test_run.py has one, too) or in a queue's.
WAYS = [
    "repro",
    pytest.param("exp run", marks=pytest.mark.slow),
    pytest.param("exp run --temp", marks=pytest.mark.slow),
    pytest.param("queue", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("way", WAYS)
def test_what_dvc_or_its_trainer_lost_is_continued_to_the_same_hashes(
    way: str, results: dict[str, Future[dict[str, str]]]
) -> None:
    hashes, expected = results[way].result(), results["quiet"].result()
    assert hashes == {path: expected[path] for path in hashes}
    assert "models/base" in hashes
