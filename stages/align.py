"""Train the finetuned model on preferences: models/aligned_adapter and models/aligned."""

from __future__ import annotations

from pathlib import Path

from llm import params
from llm.parallel.launch import on_all_devices
from llm.runtime import outputs
from llm.runtime.io import refuse_other_files, write_json
from llm.runtime.stage import run_stage

PAIRS, ADAPTER, ALIGNED = (
    Path("data/preferences"),
    Path("models/aligned_adapter"),
    Path("models/aligned"),
)


def main() -> None:
    p = params.load()
    refuse_other_files(ADAPTER, outputs.ADAPTER)  # before training, not after
    refuse_other_files(ALIGNED, outputs.MODEL)
    from llm.align.alignment import Alignment
    from llm.parallel import processes
    from llm.train import finetune_methods
    from llm.train.history import write_history
    from stages.training import training_stage

    run = Alignment(p, PAIRS)
    with training_stage(p, run.state) as (tracker, timing):
        trainer = run.trainer(tracker)
        result = trainer.run()
        trainer.engine.gather()
        if not processes.is_main():
            return  # the main process writes
        timing |= result.timing
        metrics = run.metrics(result)
        finetune_methods.write(run.model, run.finetune, run.tokenizer, run.base, ADAPTER, ALIGNED)
        write_history("metrics/align_history.csv", result.history)
        write_json("metrics/align.json", metrics)
        numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
        tracker.log_metrics(numbers, step=result.tokens)
    print(
        f"align: {metrics['method']} on {metrics['pairs']:,} pairs · of the validation pairs {metrics['accuracy']:.0%} "
        f"are ordered as chosen, margin {metrics['reward_margin']:+.2f} nats → {ALIGNED}"
    )


if __name__ == "__main__":
    run_stage(on_all_devices(main, "stages.align"))
