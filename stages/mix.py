"""Turn each task's records into prompts and responses, split and mix them: data/mix."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from llm import params
from llm.corpus.clean.plan import held_out_runs, written
from llm.errors import UserError
from llm.runtime import outputs
from llm.runtime.io import read_json, whole_directory, write_json
from llm.runtime.progress import track
from llm.runtime.stage import run_stage
from llm.runtime.timing import stage_timing
from llm.sources import datasets
from llm.tasks import mix_files, mixture, splits
from llm.tokenizer.bpe import Tokenizer

RAW, TOKENS, OUT = Path("data/raw"), Path("data/tokens"), Path("data/mix")
TEXT = mixture.LANGUAGE_MODELING


def main() -> None:
    p = params.load()
    mix, seed = p.mix, p.seed
    with stage_timing("mix"):
        tokenizer = Tokenizer.load("data/tokenizer")
        tasks = datasets.read(RAW, mix)
        draw = partial(
            mixture.draw_tasks, tasks, tokenizer=tokenizer, seed=seed, max_tokens=mix.max_tokens
        )
        val_fraction = 0.0
        if mix.pretrain_fraction or p.tokenize.clean.decontaminate:
            val_fraction = read_json(TOKENS / "meta.json")["val_fraction"]
        held_out = held_out_runs(
            p.tokenize.clean, RAW / "pretrain", datasets.held_out_texts(tasks), val_fraction
        )
        train = draw(splits.TRAIN, mix.examples, held_out=held_out)
        for task in tasks:
            if task.weight > 0:
                drawn = train[task.name]
                mix_files.check_drawn(task.name, drawn.examples, drawn.dropped, mix.max_tokens)
        # Baselines of tasks with labels learn from all examples, where the model learns from some.
        every = {
            task.name: mixture.draw_all(task, tokenizer, seed, mix.max_tokens, held_out)
            for task in tasks
            if task.task.CLOSED and task.weight > 0 and not train[task.name].complete(task.survey)
        }
        val = draw(splits.VALIDATION, max(1, round(mix.examples * mixture.VALIDATION_SHARE)))
        if mix.pretrain_fraction:
            for validation, side in ((False, train), (True, val)):
                examples_of_tasks = sum(len(drawn.examples) for drawn in side.values())
                quota = mixture.text_share(examples_of_tasks, mix.pretrain_fraction)
                records = written(p.tokenize.clean, TOKENS).records(
                    RAW / "pretrain", val_fraction=val_fraction
                )
                documents = track(records, "draw pretraining text", unit="document")
                side[TEXT] = mixture.draw_text(
                    documents, validation, quota, tokenizer, seed, mix.max_tokens
                )
        rows = {}
        for name, side in (("train", train), ("val", val)):
            examples = (example for drawn in side.values() for example in drawn.examples)
            rows[name] = mixture.shuffled(examples, seed)
        if not rows["val"]:
            raise UserError(mixture.NO_VALIDATION)
        metrics = {}
        with whole_directory(OUT, outputs.MIX) as out:
            (out / "test").mkdir()
            for name, mixed in rows.items():
                mix_files.write_examples(out / f"{name}.parquet", mixed)
            for name, mixed in every.items():
                (out / "all").mkdir(exist_ok=True)
                mix_files.write_examples(out / "all" / f"{name}.parquet", mixed)
            for task in tasks:
                path, name = out / "test" / f"{task.name}.parquet", task.name
                test = mix_files.write_test(path, task, tokenizer, mix.max_tokens)
                about = (train[name], val[name], task.survey, test)
                metrics[name] = mix_files.task_metrics(task.kind, *about)
        if mix.pretrain_fraction:
            metrics[TEXT] = mix_files.task_metrics("pretrain", train[TEXT], val[TEXT])
        sides = ("train", "val", "test")
        totals = {side: sum(counts[side] for counts in metrics.values()) for side in sides}
        write_json("metrics/mix.json", {"tasks": metrics, **totals})
    print(f"mix: {totals['train']:,} training examples → {OUT}")
    for line in (*mix_files.describe(metrics), *(f"  {line}" for line in datasets.remarks(tasks))):
        print(line)


if __name__ == "__main__":
    run_stage(main)
