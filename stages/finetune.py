"""Finetune the base model on all tasks at once: models/adapter and models/finetuned."""

from __future__ import annotations

import math
from pathlib import Path

from llm import params
from llm.parallel.launch import on_all_devices
from llm.runtime import outputs
from llm.runtime.io import refuse_other_files, sha256, write_json
from llm.runtime.stage import run_stage
from llm.tokenizer.bpe import Tokenizer

MIX, ADAPTER, FINETUNED = Path("data/mix"), Path("models/adapter"), Path("models/finetuned")


def main() -> None:
    p = params.load()
    refuse_other_files(ADAPTER, outputs.ADAPTER)  # before training, not after
    refuse_other_files(FINETUNED, outputs.MODEL)
    from llm.data.examples import packed_examples
    from llm.data.packing import PackedExamples
    from llm.model.hf_files import digests
    from llm.parallel import processes
    from llm.plan import before_training, finetune_plan
    from llm.train import finetune_methods
    from llm.train.checkpoint.local import State, code_version
    from llm.train.history import write_history
    from llm.train.trainer import Trainer
    from stages.training import training_stage

    s, seed = p.finetune, p.seed_of("finetune")
    tokenizer = Tokenizer.load(s.base)
    model = finetune_methods.prepare(s, tokenizer, seed)
    trainable = sum(x.numel() for x in model.parameters() if x.requires_grad)
    train_set: PackedExamples = packed_examples(
        MIX / "train.parquet", tokenizer, s.sequence_length, seed
    )[""]
    val_sets = packed_examples(
        MIX / "val.parquet", tokenizer, s.sequence_length, seed, by_task=True
    )
    steps = max(1, math.ceil(s.epochs * train_set.num_rows * s.sequence_length / s.batch_tokens))
    base = digests(Path(s.base))
    inputs = {
        "seed": seed,
        "finetune": s.model_dump(mode="json"),
        "base": base | {"tokenizer.json": sha256(Path(s.base) / "tokenizer.json")},
        "data/mix": {name: sha256(MIX / f"{name}.parquet") for name in ("train", "val")},
    }
    inputs |= code_version() | finetune_methods.versions(s)
    state = State("finetune", inputs)
    with training_stage(p, state) as (run, timing):
        if processes.is_main():
            before_training(finetune_plan(p, model.config, steps), state.directory)
        quick = val_sets[""].head(s.eval_tokens)
        trainer = Trainer(model, train_set, val_sets[""], quick, s, steps, seed, state, run)
        result = trainer.run()
        by_task = {
            task: trainer.engine.evaluate(data) for task, data in sorted(val_sets.items()) if task
        }
        trainer.engine.gather()
        if not processes.is_main():
            return  # the first process writes
        timing |= result.timing
        fraction = trainable / (
            model.config.parameters() + (trainable if s.method != "full" else 0)
        )
        metrics = {
            "val_loss": result.val_loss,
            "train_loss": result.train_loss,
            "trainable_parameters": trainable,
            "trainable_fraction": fraction,
            "examples": train_set.num_examples,
            "epochs": s.epochs,
            "steps": result.steps,
            "tokens": result.tokens,
            "val_loss_by_task": by_task,
        }
        finetune_methods.write(model, s, tokenizer, base, ADAPTER, FINETUNED)
        write_history("metrics/finetune_history.csv", result.history)
        write_json("metrics/finetune.json", metrics)
        numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
        run.log_metrics(numbers, step=result.tokens)
    print(
        f"finetune: validation loss {metrics['val_loss']:.4f} · {trainable:,} trained parameters "
        f"({100 * fraction:.1f} %) → {FINETUNED}"
    )


if __name__ == "__main__":
    run_stage(on_all_devices(main, "stages.finetune"))
