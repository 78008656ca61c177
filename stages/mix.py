"""Turn each task's records into prompts and responses, split and mix them: data/mix."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from llm import params
from llm.corpus.clean.plan import written
from llm.errors import UserError
from llm.runtime import outputs
from llm.runtime.io import read_json, whole_directory, write_json
from llm.runtime.progress import track
from llm.runtime.stage import run_stage
from llm.runtime.timing import stage_timing
from llm.sources import datasets
from llm.tasks import mix_files, mixture, splits
from llm.tokenizer.bpe import Tokenizer

RAW, TOKENS, OUT, TEXT = (
    Path("data/raw"),
    Path("data/tokens"),
    Path("data/mix"),
    mixture.LANGUAGE_MODELING,
)


def main() -> None:
    p = params.load()
    mix, seed = p.mix, p.seed
    with stage_timing("mix"):
        tokenizer = Tokenizer.load("data/tokenizer")
        found = datasets.read(RAW, mix)
        draw = partial(
            mixture.draw_tasks, found, tokenizer=tokenizer, seed=seed, max_tokens=mix.max_tokens
        )
        train = draw(splits.TRAIN, mix.examples)
        for d in found:
            if d.weight > 0:
                mix_files.check_drawn(
                    d.name, train[d.name].examples, train[d.name].dropped, mix.max_tokens
                )
        val = draw(splits.VALIDATION, max(1, round(mix.examples * mixture.VALIDATION_SHARE)))
        if mix.pretrain_fraction:
            held_out_fraction = read_json(TOKENS / "meta.json")["val_fraction"]
            for validation, side in ((False, train), (True, val)):
                quota = mixture.text_share(
                    sum(len(d.examples) for d in side.values()), mix.pretrain_fraction
                )
                records = written(p.tokenize.clean, TOKENS).records(RAW / "pretrain")
                documents = track(records, "draw pretraining text", unit="document")
                side[TEXT] = mixture.draw_text(
                    documents, validation, held_out_fraction, quota, tokenizer, seed, mix.max_tokens
                )
        rows = {
            name: mixture.shuffled((e for d in side.values() for e in d.examples), seed)
            for name, side in (("train", train), ("val", val))
        }
        if not rows["val"]:
            raise UserError(mixture.NO_VALIDATION)
        metrics = {}
        with whole_directory(OUT, outputs.MIX) as out:
            (out / "test").mkdir()
            for name, examples in rows.items():
                mix_files.write_examples(out / f"{name}.parquet", examples)
            for d in found:
                test = mix_files.write_test(
                    out / "test" / f"{d.name}.parquet", d, tokenizer, mix.max_tokens
                )
                metrics[d.name] = mix_files.task_metrics(
                    d.kind, train[d.name], val[d.name], d.survey, test
                )
        if mix.pretrain_fraction:
            metrics[TEXT] = mix_files.task_metrics("pretrain", train[TEXT], val[TEXT])
        totals = {
            side: sum(task[side] for task in metrics.values()) for side in ("train", "val", "test")
        }
        write_json("metrics/mix.json", {"tasks": metrics, **totals})
    about = (f"  {line}" for line in datasets.remarks(found))
    print(
        "\n".join(
            [
                f"mix: {totals['train']:,} training examples → {OUT}",
                *mix_files.describe(metrics),
                *about,
            ]
        )
    )


if __name__ == "__main__":
    run_stage(main)
