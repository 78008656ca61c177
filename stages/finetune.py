"""Finetune the base model on all tasks at once: models/adapter and models/finetuned."""

from __future__ import annotations

from pathlib import Path

from llm import params
from llm.parallel.launch import on_all_devices
from llm.runtime import outputs
from llm.runtime.io import refuse_other_files, write_json
from llm.runtime.stage import run_stage

MIX, ADAPTER, FINETUNED = Path("data/mix"), Path("models/adapter"), Path("models/finetuned")


def main() -> None:
    p = params.load()
    refuse_other_files(ADAPTER, outputs.ADAPTER)  # before training, not after
    refuse_other_files(FINETUNED, outputs.MODEL)
    from llm.parallel import processes
    from llm.plan import before_training, finetune_plan
    from llm.train import finetune_methods
    from llm.train.finetuning import Finetuning
    from llm.train.history import write_history
    from stages.training import training_stage

    run = Finetuning(p, MIX)
    with training_stage(p, run.state) as (tracker, timing):
        if processes.is_main():
            before_training(finetune_plan(p, run.model.config, run.steps), run.state.directory)
        trainer = run.trainer(tracker)
        result = trainer.run()
        by_task = {
            task: trainer.engine.evaluate(run.val_sets[task]) for task in sorted(run.val_sets)
        }
        trainer.engine.gather()
        if not processes.is_main():
            return  # the main process writes
        timing |= result.timing
        metrics = run.metrics(result, by_task)
        finetune_methods.write(run.model, p.finetune, run.tokenizer, run.base, ADAPTER, FINETUNED)
        write_history("metrics/finetune_history.csv", result.history)
        write_json("metrics/finetune.json", metrics)
        numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
        tracker.log_metrics(numbers, step=result.tokens)
    print(
        f"finetune: validation loss {result.val_loss:.4f} · {run.trainable:,} trained parameters "
        f"({100 * metrics['trainable_fraction']:.1f} %) → {FINETUNED}"
    )


if __name__ == "__main__":
    run_stage(on_all_devices(main, "stages.finetune"))
