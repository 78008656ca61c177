"""Train the language model on the token shards, from scratch or from a checkpoint: models/base."""

from __future__ import annotations

from pathlib import Path

from llm import params
from llm.parallel.launch import on_all_devices
from llm.runtime import outputs
from llm.runtime.io import refuse_other_files, whole_directory, write_json
from llm.runtime.stage import run_stage

TOKENS, BASE = Path("data/tokens"), Path("models/base")


def main() -> None:
    p = params.load()
    refuse_other_files(BASE, outputs.MODEL)  # before the hours of training, not after
    from llm.data.val_sample import validation_sample
    from llm.model.hf_files import save_model
    from llm.parallel import processes
    from llm.plan import before_training, pretrain_plan
    from llm.train.history import write_history
    from llm.train.pretraining import Pretraining
    from llm.train.source_loss import source_losses
    from stages.training import training_stage

    run = Pretraining(p, TOKENS)
    with training_stage(p, run.state) as (tracker, timing):
        if processes.is_main():
            before_training(pretrain_plan(p, run.model.config), run.state.directory)
        sample = validation_sample(TOKENS, run.val, run.tokenizer, p.pretrain.eval_tokens)
        if processes.is_main():
            size = f"{len(sample):,} tokens: {sample.describe()}"
            print(f"pretrain: validation between steps reads {size}", flush=True)
        trainer = run.trainer(tracker, run.windows(sample, partial=True))
        result = trainer.run()
        by_source = source_losses(trainer.engine, run.val_set, TOKENS)
        trainer.engine.gather()
        if not processes.is_main():
            return  # the main process writes
        timing |= result.timing
        metrics = run.metrics(result)
        with whole_directory(BASE, outputs.MODEL) as directory:
            save_model(run.model, directory, Path(p.pretrain.init), run.tokenizer.eos_id)
            run.tokenizer.save(directory)
        write_history("metrics/pretrain_history.csv", result.history)
        quick = {"quick_validation": sample.about(sample.names)}
        write_json("metrics/pretrain.json", metrics | by_source | quick)
        tracker.log_metrics(metrics, step=result.tokens)
    loss, perplexity = result.val_loss, metrics["val_perplexity"]
    print(f"pretrain: validation loss {loss:.4f} · perplexity {perplexity:.2f} → {BASE}")


if __name__ == "__main__":
    run_stage(on_all_devices(main, "stages.pretrain"))
