"""Text to token ids side by side, from Parquet to files on disk, and the training of a BPE
vocabulary.

    python bench/tokenization.py [--text FILE ...] [--mb 150] [--rounds 3] [--train-mb 40]

Everyone gets the same Parquet files and the same vocabulary: GPT-2's where its files are (see
TIKTOKEN_CACHE_DIR), else one trained here, as tiktoken.Encoding and as tokenizer.json. They take
turns, each in a process of its own, imports not counted; figures are medians, ratios are medians of
the rounds' ratios. Memory is the proportional share (PSS) of the process and all that it starts.
What they wrote is compared, document by document.

(Not bench/tokenize.py: for every bench that would stand before the standard library's `tokenize`.)
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import one_task
import results
from workers import Gate, Worker, call

ROOT = Path(__file__).resolve().parent.parent
GOAL, STRETCH = 15.0, 20.0  # times nanoGPT's way
OURS, PLAIN, NANOGPT = "ours", "ours, encoder: tiktoken", "nanoGPT's way"
ROWS = {
    OURS: "our tokenize stage",
    PLAIN: "our tokenize stage, `encoder: tiktoken`",
    NANOGPT: "nanoGPT's way: `datasets.map`, tiktoken per document, memmap copy",
    "tiktoken": "`tiktoken`, `encode_ordinary_batch`",
    "tokenizers": "`tokenizers`, `encode_batch`",
    "gigatoken": "`gigatoken`, `encode_batch`",
    "fastokens": "`fastokens`, `encode_batch_flat`",
}


# -- what runs in a process of its own


def used() -> float:
    """CPU seconds of this process and of its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Peak:
    """Largest memory of this process and all below it while the block runs, looked at four times a
    second.
    """

    def __enter__(self) -> Peak:
        self.bytes, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        import psutil

        me = psutil.Process()
        while True:
            held = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    full = process.memory_full_info()
                except psutil.Error:  # it has just ended
                    continue
                held += getattr(full, "pss", full.uss)
            self.bytes = max(self.bytes, held)
            if self.done.wait(0.25):
                return


def turns(gate: Gate, work: Callable[[], None], before: Callable[[], None] = lambda: None) -> None:
    """Do the work once a step, until the driver has seen enough; `before` is not counted."""
    gate.begin()
    while True:
        before()
        os.sync()  # nobody pays for what the one before still has to bring to the disk
        began, cpu = time.perf_counter(), used()
        with Peak() as peak:
            work()
        gate.step_done(
            {"seconds": time.perf_counter() - began, "cpu": used() - cpu, "memory": peak.bytes}
        )


def ours(gate: Gate, folder: Path, vocabulary: Path, encoder: str) -> None:
    """stages.tokenize, whole, but that it finds its vocabulary at hand."""
    import yaml

    from llm.tokenizer.bpe import Tokenizer
    from stages import tokenize

    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["tokenize"] |= {"tokenizer": "gpt2", "encoder": encoder}
    one_task.alone(params)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    os.chdir(folder)
    os.environ["DVC_ROOT"] = str(folder)
    Tokenizer.gpt2 = classmethod(lambda cls: cls.load(vocabulary))  # type: ignore[method-assign, assignment]
    turns(
        gate, tokenize.main, lambda: shutil.rmtree(folder / "data" / "tokens", ignore_errors=True)
    )


def nanogpt(gate: Gate, folder: Path, vocabulary: Path) -> None:
    """Do what nanoGPT's data/openwebtext/prepare.py does, on these files."""
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    import numpy as np

    from llm.tokenizer.bpe import Tokenizer

    processes = os.cpu_count() or 1

    def work() -> None:
        encoding = Tokenizer.load(vocabulary)._encoding
        end = encoding.eot_token

        def process(example: dict[str, Any]) -> dict[str, Any]:
            ids = [*encoding.encode_ordinary(example["text"]), end]
            return {"ids": ids, "len": len(ids)}

        files = sorted(map(str, (folder / "data/raw/pretrain").glob("*.parquet")))
        loaded = datasets.load_dataset("parquet", data_files=files, num_proc=processes)["train"]
        split = loaded.train_test_split(test_size=0.0005, seed=2357, shuffle=True)
        tokenized = split.map(process, remove_columns=loaded.column_names, num_proc=processes)
        for name, part in tokenized.items():
            length = int(np.sum(part["len"], dtype=np.uint64))
            array = np.memmap(folder / f"{name}.bin", dtype=np.uint16, mode="w+", shape=(length,))
            batches, at = min(1024, len(part)), 0
            for number in range(batches):
                batch = part.shard(num_shards=batches, index=number, contiguous=True).with_format(
                    "numpy"
                )
                ids = np.concatenate(batch["ids"])
                array[at : at + len(ids)] = ids
                at += len(ids)
            array.flush()

    turns(gate, work, lambda: shutil.rmtree(folder / "cache", ignore_errors=True))


def documents(folder: Path, size: int) -> Iterator[list[str]]:
    """The texts in lists of about `size` bytes, read as a stream."""
    import pyarrow.parquet as pq

    batch, held = [], 0
    for path in sorted((folder / "data/raw/pretrain").glob("*.parquet")):
        for part in pq.ParquetFile(path).iter_batches(batch_size=256, columns=["text"]):
            batch += part.column(0).to_pylist()
            held += part.nbytes
            if held >= size:
                yield batch
                batch, held = [], 0
    yield batch


def batches(gate: Gate, folder: Path, vocabulary: Path, kind: str) -> None:
    """A library's own call for many texts, on batches of 8 MB, each appended to one file."""
    import numpy as np

    from llm.tokenizer.bpe import Tokenizer

    def encoder() -> Callable[[list[str]], Iterator[Any]]:
        end = [Tokenizer.load(vocabulary).eos_id]
        if kind == "tiktoken":
            encoding = Tokenizer.load(vocabulary)._encoding
            return lambda texts: (
                i + end
                for i in encoding.encode_ordinary_batch(texts, num_threads=os.cpu_count() or 1)
            )
        if kind == "tokenizers":
            import tokenizers

            peer = tokenizers.Tokenizer.from_file(str(vocabulary / "tokenizer.json"))
            peer.normalizer = None  # it serves chat templates only
            return lambda texts: (
                i.ids + end for i in peer.encode_batch_fast(texts, add_special_tokens=False)
            )
        if kind == "gigatoken":
            import gigatoken

            path = str(vocabulary / "ranks.tiktoken")
            giga = gigatoken.Tokenizer.from_tiktoken(path, pretokenizer="gpt2", special_tokens={})
            return lambda texts: (np.append(i, end) for i in giga.encode_batch(texts))
        import fastokens

        fast = fastokens.Tokenizer.from_tiktoken(
            str(vocabulary / "ranks.tiktoken"), pattern=PLAIN_GPT2, special_tokens={}
        )

        def flat(texts: list[str]) -> Iterator[Any]:
            ids, offsets = fast.encode_batch_flat(texts, split_special_tokens=True)
            parts = np.split(
                np.frombuffer(ids, np.uint32),
                np.frombuffer(offsets, np.uint64)[1:-1].astype(np.int64),
            )
            return (np.append(part, end) for part in parts)

        return flat

    def work() -> None:
        encode = encoder()
        with open(folder / "train.bin", "wb") as file:
            for texts in documents(folder, 8 << 20):
                if texts:
                    np.concatenate(
                        [np.asarray(ids, dtype=np.uint16) for ids in encode(texts)]
                    ).tofile(file)

    turns(gate, work)


# which fastokens knows
PLAIN_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train(gate: Gate, folder: Path, kind: str, vocab_size: int, limit: int) -> None:
    """BPE on the first `limit` bytes of text."""
    from llm.tokenizer.bpe import PATTERN, Tokenizer

    texts = next(documents(folder, limit))
    size = sum(len(text.encode()) for text in texts)

    def work() -> None:
        if kind == "tokenizers":
            Tokenizer.train(texts, vocab_size)
        elif kind == "rustbpe":
            import rustbpe

            rustbpe.Tokenizer().train_from_iterator(iter(texts), vocab_size, pattern=PATTERN)
        else:
            import gigatoken

            gigatoken.train_bpe("\0".join(texts).encode(), vocab_size, [], separator=b"\0")

    gate.values.append({"bytes": size})
    turns(gate, work)


def written(gate: Gate, folder: Path, vocabulary: Path) -> dict[str, int]:
    """Documents, tokens and a digest of all documents' ids, whatever their order and whichever file
    they are in.
    """
    import numpy as np

    from llm.tokenizer.bpe import Tokenizer

    end = Tokenizer.load(vocabulary).eos_id
    shards = sorted((folder / "data/tokens").glob("*.npy"))
    arrays = [np.load(path, mmap_mode="r") for path in shards]
    if shards:  # a document may cross from a shard into the next of its split
        names = [path.name.split("-")[0] for path in shards]
        arrays = [
            np.concatenate([a for a, n in zip(arrays, names, strict=True) if n == name])
            for name in set(names)
        ]
    arrays = arrays or [np.fromfile(path, dtype=np.uint16) for path in sorted(folder.glob("*.bin"))]
    total = tokens = count = 0
    for array in arrays:
        for ids in np.split(array, np.flatnonzero(array == end) + 1)[:-1]:
            total += int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "big")
            tokens, count = tokens + len(ids), count + 1
    return {"documents": count, "tokens": tokens, "digest": total % 2**64}


# -- the driver


def prepare(gate: Gate, folder: Path, text: list[str], limit: int) -> dict[str, Any]:
    """data/raw/pretrain of the first `limit` bytes of text, and the vocabulary for everyone."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from llm import params
    from llm.errors import UserError
    from llm.sources import raw
    from llm.sources.download import write_raw
    from llm.tokenizer.bpe import Tokenizer

    whole = ROOT / "data/raw/pretrain"
    if text:
        whole = folder / "all"
        source = params.FilesSource(source="files", paths=text, max_rejected_fraction=0.5)
        write_raw("pretrain", "pretrain", source, whole)
    out = folder / "text/data/raw/pretrain"
    with raw.Writer(out, "pretrain") as writer:
        copy = 0
        while (
            writer.bytes < limit
        ):  # a corpus larger than the text at hand is the text again and again
            for record in raw.read(whole):
                writer.write({**record, "id": f"{copy}-{record['id']}"})
                if writer.bytes >= limit:
                    break
            copy += 1
    (out / "manifest.json").write_text("{}")
    one_task.write(out.parent)
    try:
        tokenizer, name = Tokenizer.gpt2(), "GPT-2's vocabulary"
    except UserError:
        sample = (record["text"] for record, _ in zip(raw.read(out), range(2000), strict=False))
        tokenizer, name = (
            Tokenizer.train(sample, 32768),
            "a vocabulary of 32,768 trained here (GPT-2's is not on this machine)",
        )
    tokenizer.save(folder / "vocabulary")
    about = {
        "bytes": writer.bytes,
        "documents": writer.rows,
        "vocabulary": name,
        "gpt2": name.startswith("GPT-2"),
    }
    return about | {"copies": copy}


def contestants(folder: Path, gpt2: bool, rows: list[str]) -> dict[str, Worker]:
    """A process each, with a folder each."""
    found = {}

    def begin(name: str, function: Callable[..., Any], **arguments: Any) -> None:
        own = folder / "".join(c if c.isalnum() else "-" for c in name)
        shutil.copytree(folder / "text", own)
        log, vocabulary = folder / f"{own.name}.log", folder / "vocabulary"
        found[name] = Worker(
            function, log, None, daemon=False, folder=own, vocabulary=vocabulary, **arguments
        )

    begin(OURS, ours, encoder="auto")
    begin(PLAIN, ours, encoder="tiktoken")
    begin(NANOGPT, nanogpt)
    for kind in rows:
        if kind in ("tiktoken", "tokenizers") or (
            importlib.util.find_spec(kind) and gpt2
        ):  # the rest know GPT-2 only
            begin(kind, batches, kind=kind)
    return found


def run(
    folder: Path,
    text: list[str],
    limit: int,
    rounds: int,
    train_limit: int,
    vocab_size: int,
    rows: list[str],
) -> None:
    """Measure and print."""
    about = call(prepare, folder / "prepare.log", folder=folder, text=text, limit=limit)
    copies = f", the text at hand {about['copies']} times" if about["copies"] > 1 else ""
    print(
        f"{about['bytes'] / 1e6:.0f} MB in {about['documents']:,} documents{copies}; {about['vocabulary']}",
        flush=True,
    )
    children = contestants(folder, about["gpt2"], rows)
    took: dict[str, list[dict[str, float]]] = {name: [] for name in children}
    try:
        for number in range(rounds):
            for name, child in children.items():
                took[name] += child.steps(1)
                print(f"round {number + 1}: {name}: {took[name][-1]['seconds']:.1f} s", flush=True)
        for child in children.values():
            child.stop()
    finally:
        for child in children.values():
            child.process.kill()
    same = {}
    for name in children:
        own = folder / "".join(c if c.isalnum() else "-" for c in name)
        same[name] = call(
            written, folder / "written.log", folder=own, vocabulary=folder / "vocabulary"
        )
    lines = []
    for name, turns_ in took.items():
        ratio = results.median(
            b["seconds"] / a["seconds"] for a, b in zip(turns_, took[NANOGPT], strict=True)
        )
        lines.append(
            (
                ROWS[name],
                f"{about['bytes'] / 1e6 / results.median(t['seconds'] for t in turns_):.1f}",
                f"{ratio:.1f}",
                f"{about['bytes'] / 1e6 / results.median(t['cpu'] for t in turns_):.1f}",
                f"{max(t['memory'] for t in turns_) / 1e6:,.0f}",
                "yes" if same[name] == same[NANOGPT] else "NO",
            )
        )
    head = ("", "MB/s", "times nanoGPT's way", "MB per CPU second", "peak memory, MB", "same ids")
    print("\n" + results.table(head, lines) + "\n")
    ratios = {line[0]: float(line[2]) for line in lines}
    print(f"- ours: goal {GOAL:.0f} {results.against(ratios[ROWS[OURS]], GOAL, True)}, stretch {STRETCH:.0f} "
          f"{results.against(ratios[ROWS[OURS]], STRETCH, True)}")  # fmt: skip
    print(
        f"- {about['bytes'] / 1e6:.0f} MB, {same[NANOGPT]['tokens']:,} tokens, {rounds} rounds; {results.machine()}\n"
    )
    train_rows(folder, rounds, train_limit, vocab_size)


def train_rows(folder: Path, rounds: int, limit: int, vocab_size: int) -> None:
    """The table of BPE training."""
    lines = []
    children = {}
    for kind in ("tokenizers", "rustbpe", "gigatoken"):
        if importlib.util.find_spec(kind):
            arguments = {"kind": kind, "vocab_size": vocab_size, "limit": limit}
            children[kind] = Worker(
                train, folder / f"train-{kind}.log", None, folder=folder / "text", **arguments
            )
    took: dict[str, list[dict[str, float]]] = {kind: [] for kind in children}
    for _ in range(rounds):
        for kind, child in children.items():
            took[kind] += child.steps(1)
    for kind, child in children.items():
        child.stop()
        size, *turns_ = took[kind]
        seconds = results.median(t["seconds"] for t in turns_)
        memory = max(t["memory"] for t in turns_)
        rate = size["bytes"] / 1e6 / seconds
        name = kind + (" (ours)" if kind == "tokenizers" else "")
        lines.append((name, f"{seconds:.1f}", f"{rate:.1f}", f"{memory / 1e6:,.0f}"))
    print(
        f"BPE training, {vocab_size:,} tokens\n\n"
        + results.table(("", "seconds", "MB/s", "peak memory, MB"), lines)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--text",
        nargs="+",
        default=[],
        metavar="FILE",
        help="any that download reads (default: data/raw/pretrain)",
    )
    parser.add_argument("--mb", type=float, default=150, help="of text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--rows",
        nargs="*",
        default=list(ROWS)[3:],
        choices=list(ROWS)[3:],
        help="beside ours, nanoGPT",
    )
    parser.add_argument("--train-mb", type=float, default=40, help="of text for BPE, at most")
    parser.add_argument("--vocab-size", type=int, default=32768, help="of the BPE that is trained")
    asked = parser.parse_args()
    if not asked.text and not (ROOT / "data/raw/pretrain/manifest.json").exists():
        parser.error("no data/raw/pretrain here: run `dvc repro download`, or give --text FILE")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        limit, train_limit = int(asked.mb * 1e6), int(asked.train_mb * 1e6)
        run(
            Path(folder), asked.text, limit, asked.rounds, train_limit, asked.vocab_size, asked.rows
        )


if __name__ == "__main__":
    main()
