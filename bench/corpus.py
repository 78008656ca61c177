"""A corpus that is large: memory, kills and worker counts of tokenize, and the loader under a
memory limit.

    python bench/corpus.py tokenize [--gb 5] [--workers 1 2 4] [--tokenizer gpt2]
    python bench/corpus.py loader [--shards-gb 3] [--limit-gb 1] [--steps 30]

`tokenize` makes a corpus of words that follow Zipf's law, runs the stage once for each number of
workers and kills it (SIGKILL) on the way, and compares all bytes. Memory is the largest resident
set of any one of its processes. `loader` trains the default model on shards larger than the memory
that the process may have, the page cache included."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import one_task
import results

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 1 << 30  # bytes of memory a process
WARM = 2  # steps before the loader's waiting counts
EVICTED = "no control group here: shards taken out of the page cache before each step"


# -- a corpus
# ----------------------------------------------------------------------------------------------------------


def texts(seed: int, size: int) -> Iterator[str]:
    """Documents of together about `size` bytes: 400,000 made-up words by Zipf's law, sentences,
    paragraphs.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlcumwfgypbvk"))
    lengths = rng.integers(2, 12, size=400_000)
    shares = np.arange(1, 23, dtype=float) ** -0.7
    pool = rng.choice(letters, size=int(lengths.sum()), p=shares / shares.sum())
    words = ["".join(word) for word in np.split(pool, np.cumsum(lengths)[:-1])]
    words[20:400_000:50] = [str(i) for i in range(len(words[20:400_000:50]))]
    words += [f"{word}{sign}" for word in words[:20_000] for sign in (",", ".", ".\n\n")]
    table = np.array(words, dtype=object)
    made = 0
    while made < size:
        chosen = np.minimum(rng.zipf(1.15, size=400_000), 1 << 40) * 7919 % len(table)
        many, at = table[chosen].tolist(), 0
        for length in np.minimum(
            rng.lognormal(6.0, 1.2, size=1000).astype(int) + 5, 200_000
        ).tolist():
            text = " ".join(many[at : at + length])
            at += length
            made += len(text)
            yield text
            if at >= len(many):
                break


def make_raw(folder: Path, size: int) -> int:
    """data/raw/pretrain; bytes of text."""
    from llm.runtime.io import write_json
    from llm.sources.raw import Writer

    with Writer(folder, "pretrain") as writer:
        for number, text in enumerate(texts(0, size)):
            writer.write(
                {"id": str(number), "text": text, "source": f"source-{number % 7}", "group": ""}
            )
    write_json(folder / "manifest.json", {"bytes": writer.bytes, "rows": writer.rows})
    return writer.bytes


# -- tokenize, killed
# --------------------------------------------------------------------------------------------------


class Run:
    """The stage in a process of its own, watched."""

    def __init__(self, folder: Path, workers: int) -> None:
        environment = os.environ | {"DVC_ROOT": str(folder), "LLM_STATE_SECONDS": "2"}
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
        )
        self.folder, self.log, self.began = (
            folder,
            open(folder / f"{workers}.log", "a"),  # noqa: SIM115
            time.monotonic(),
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stages.tokenize"],
            cwd=folder,
            env=environment,
            stdout=self.log,
            stderr=self.log,
        )
        self.peak = 0  # bytes of the largest of its processes
        self.together = 0

    def watch(self, until: float = 1.0) -> float:
        """Wait until a share of the chunks is on record, or until it ends; the seconds since it
        began.
        """
        import psutil

        me = psutil.Process(self.process.pid)
        while self.process.poll() is None:
            held = []
            for process in (me, *_children(me)):
                try:
                    held.append(process.memory_info().rss)
                except psutil.Error:  # it has just ended
                    continue
            self.peak, self.together = max(self.peak, *held, 0), max(self.together, sum(held))
            if until < 1.0 and self._done() >= until:
                break
            time.sleep(0.05)
        return time.monotonic() - self.began

    def _done(self) -> float:
        found = next(self.folder.glob(".state/tokenize/*/progress.json"), None)
        try:
            return json.loads(found.read_text())["chunks"] / self.chunks() if found else 0.0
        except (OSError, ValueError):
            return 0.0

    def chunks(self) -> int:
        """Return the number of chunks of the corpus."""
        from llm.corpus.chunks import find_chunks

        self._chunks: int = getattr(self, "_chunks", None) or len(
            find_chunks(self.folder / "data/raw/pretrain")
        )
        return self._chunks

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def _children(process: Any) -> list[Any]:
    import psutil

    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def digest(folder: Path) -> str:
    """Return the digest of all files that the stage wrote."""
    whole = hashlib.sha256()
    for path in sorted([*folder.glob("data/tok*/*"), folder / "metrics/tokenize.json"]):
        with open(path, "rb") as file:
            whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def tokenize(folder: Path, size: int, workers: list[int], tokenizer: str) -> None:
    """Make the corpus, run, print."""
    import yaml

    began = time.monotonic()
    size = make_raw(folder / "data/raw/pretrain", size)
    one_task.write(folder / "data/raw")
    print(f"{size / 1e9:.2f} GB of text made in {time.monotonic() - began:.0f} s", flush=True)
    lines, found = [], []
    for count in workers:
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["tokenize"] |= {"tokenizer": tokenizer, "workers": count}
        one_task.alone(params)
        (folder / "params.yaml").write_text(
            yaml.safe_dump(params, sort_keys=False), encoding="utf-8"
        )
        first = Run(folder, count)
        first.watch(until=0.4)
        killed = first.process.poll() is None
        first.kill()
        second = Run(folder, count)
        seconds = second.watch()
        if second.process.returncode:
            sys.exit(f"the stage failed; its log:\n{(folder / f'{count}.log').read_text()[-2000:]}")
        continued = "resumes after" in (folder / f"{count}.log").read_text()
        peak, together = max(first.peak, second.peak), max(first.together, second.together)
        found.append(digest(folder))
        for name in ("data/tokens", "data/tokenizer"):
            shutil.rmtree(folder / name)
        whole = Run(folder, count)
        alone = whole.watch()
        peak, together = max(peak, whole.peak), max(together, whole.together)
        found.append(digest(folder))
        lines.append(
            (
                count,
                f"{alone:.0f} s, {size / 1e6 / alone:.0f} MB/s",
                f"{seconds:.0f} s" if killed and continued else "not killed in time",
                f"{peak / 1e6:,.0f}",
                f"{together / 1e6:,.0f}",
                found[-2][:12] if found[-1] == found[-2] else "DIFFERENT",
            )
        )
        print(f"{count} workers: {lines[-1]}", flush=True)
    head = (
        "workers",
        "whole run",
        "after a kill at 40 %",
        "largest process, MB",
        "all together, MB",
        "sha256 of both",
    )
    print("\n" + results.table(head, lines))
    biggest = max(float(line[3].replace(",", "")) for line in lines) * 1e6
    print(f"\n- all bytes equal: {'yes' if len(set(found)) == 1 else 'NO'}; largest process "
          f"{biggest / BUDGET:.0%} of the budget of 1 GiB; {results.machine()}")  # fmt: skip


# -- the loader
# --------------------------------------------------------------------------------------------------------


def make_shards(folder: Path, size: int) -> None:
    """Random tokens of about `size` bytes; they need not mean anything here."""
    import numpy as np

    from llm.corpus.shard_writer import ShardWriter
    from llm.runtime.io import write_json

    folder.mkdir(parents=True)
    rng, meta = np.random.default_rng(0), {"dtype": "uint16", "vocab_size": 4096, "eos_id": 0}
    for split, tokens in (("train", size // 2), ("val", 100_000)):
        writer = ShardWriter(folder, split, np.dtype(np.uint16), 100_000_000)
        for _ in range(0, tokens, 1 << 24):
            writer.add(rng.integers(0, 4096, size=min(tokens, 1 << 24), dtype=np.uint16))
        meta[split] = {
            "tokens": tokens,
            "documents": 1,
            "bytes": 4 * tokens,
            "shards": writer.close(),
        }  # type: ignore[assignment]
        os.sync()
    write_json(folder / "meta.json", meta)


def limit_memory(limit: int) -> Path | None:
    """Put this process into a control group with a limit of memory, page cache included; None where
    it may not.
    """
    own = dict(
        line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines()
    )
    for root, group, name in (
        ("/sys/fs/cgroup/memory", own.get("memory"), "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", own.get(""), "memory.max"),
    ):
        if group is None:
            continue
        place = Path(root) / group.strip("/") / f"bench-{os.getpid()}"
        try:
            place.mkdir()
            (place / name).write_text(str(limit))
            (place / "cgroup.procs").write_text(str(os.getpid()))
            return place
        except OSError:
            if place.is_dir():
                place.rmdir()
    return None


def train(folder: str, steps: str, limit: str) -> None:
    """Take, in a process of its own, some steps of the default model on the shards; prints figures as
    JSON.
    """
    group = limit_memory(int(limit)) if int(limit) else None
    evict = bool(int(limit)) and group is None
    how = (
        f"a control group of {int(limit) / 1e9:.1f} GB"
        if group
        else EVICTED
        if evict
        else "no limit"
    )
    os.environ["DVC_ROOT"] = folder
    import numpy as np

    from llm import params
    from llm.data.batches import micro_batches, one_ahead
    from llm.data.shards import TokenStream
    from llm.data.windows import TokenWindows
    from llm.model.config import Config
    from llm.model.transformer import Transformer
    from llm.train.checkpoint.local import State
    from llm.train.trainer import Trainer
    from llm.train.training_log import Untracked

    p = params.load(ROOT / "params.yaml")
    model = Transformer(Config(4096, **p.model.dimensions()))
    model.initialize(1)
    stream, val = (TokenStream(Path(folder) / "tokens", split) for split in ("train", "val"))
    sets = [TokenWindows(s, p.pretrain.sequence_length, True) for s in (stream, val)]
    settings = p.pretrain.model_copy(update={"compile": False})
    state = State("bench", {})
    state.directory.mkdir(parents=True, exist_ok=True)
    run = Trainer(model, sets[0], sets[1], sets[1], settings, int(steps), 1, state, Untracked())
    batch, micro = run.engine.batch_size, run.engine.micro
    numbers = range(batch // micro)
    batches = one_ahead(micro_batches(sets[0], 1, range(int(steps)), batch, micro, numbers, False))
    files = [os.open(path, os.O_RDONLY) for path in Path(folder, "tokens").glob("*.npy")]
    for step in range(int(steps)):
        # Once in any case: pages that the parent read before are counted as the parent's, not as
        # this process's.
        for file in files if evict or (int(limit) and step == 0) else ():
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        if step == WARM:
            run.engine.meter.waited["loader"] = 0.0
        with run.engine.meter.step():
            run.step(step, batches)
    reading = []
    for step in range(10_000, 10_020):  # the rows of a step, read by themselves
        began = time.perf_counter()
        for file in files if evict else ():
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        sets[0].rows(np.random.default_rng(step).integers(0, sets[0].num_rows, size=batch))
        reading.append(time.perf_counter() - began)
    figures = {
        "how": how,
        "group": str(group) if group else None,
        "step": results.median(run.engine.meter.steps),
        "share": run.engine.meter.waited["loader"] / sum(run.engine.meter.steps[WARM:]),
        "read": results.median(reading),
        "faults": _major_faults(),
    }
    print(json.dumps(figures))


def _major_faults() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def loader(folder: Path, size: int, limit: int, steps: int) -> None:
    """Train on shards larger than the limit, and on the same ones without a limit; print."""
    make_shards(folder / "tokens", size)
    lines = []
    for name, allowed in (("shards in memory", 0), (f"memory of {limit / 1e9:.1f} GB", limit)):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        }
        done = subprocess.run(
            [sys.executable, __file__, "train", str(folder), str(steps), str(allowed)],
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"the training failed:\n{done.stderr[-2000:]}")
        f = json.loads(done.stdout.splitlines()[-1])
        if f["group"]:
            Path(f["group"]).rmdir()
        row = (
            name,
            f["how"],
            f"{f['step']:.3f}",
            f"{f['share']:.2%}",
            f"{1e3 * f['read']:.1f}",
            f"{f['faults']:,}",
        )
        lines.append(row)
        print(row, flush=True)
    head = (
        "",
        "limited by",
        "s a step",
        "of it waiting for rows",
        "ms to read a step's rows",
        "major page faults",
    )
    print(
        f"\nShards of {size / 1e9:.1f} GB; default model, batches of 8,192 tokens, {steps} steps.\n"
    )
    print(results.table(head, lines) + f"\n\n- {results.machine()}")


def main() -> None:
    if sys.argv[1:2] == ["train"]:
        train(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=("tokenize", "loader"))
    parser.add_argument("--gb", type=float, default=5.0, help="of text")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tokenizer", choices=("gpt2", "bpe"), default="bpe")
    parser.add_argument("--shards-gb", type=float, default=3.0)
    parser.add_argument("--limit-gb", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="bench-", dir=asked.folder) as folder:
        if asked.section == "tokenize":
            tokenize(Path(folder), int(asked.gb * 1e9), asked.workers, asked.tokenizer)
        else:
            loader(Path(folder), int(asked.shards_gb * 1e9), int(asked.limit_gb * 1e9), asked.steps)


if __name__ == "__main__":
    main()
