"""Train the language model on the token shards, from scratch or from a checkpoint: models/base."""

from __future__ import annotations

import math
from pathlib import Path

from llm import params
from llm.data.shards import TokenStream
from llm.data.val_sample import ValSample
from llm.data.val_sources import validation_sources
from llm.parallel.launch import on_all_devices
from llm.runtime import outputs
from llm.runtime.io import refuse_other_files, sha256, whole_directory, write_json
from llm.runtime.stage import run_stage
from llm.tokenizer.bpe import Tokenizer

TOKENS, BASE = Path("data/tokens"), Path("models/base")


def main() -> None:
    p = params.load()
    refuse_other_files(BASE, outputs.MODEL)  # before the hours of training, not after
    from llm.data.windows import TokenWindows
    from llm.model.hf_files import save_model
    from llm.parallel import processes
    from llm.plan import before_training, pretrain_plan
    from llm.train.checkpoint.local import State, code_version
    from llm.train.history import write_history
    from llm.train.initial_model import initial_model
    from llm.train.source_loss import source_losses
    from llm.train.trainer import Trainer
    from stages.training import training_stage

    length, across = p.pretrain.sequence_length, p.pretrain.attend_across_documents
    init, seed = Path(p.pretrain.init), p.seed_of("pretrain")
    tokenizer = Tokenizer.load(init)
    train_set, val = (
        TokenWindows(TokenStream(TOKENS, "train"), length, across),
        TokenStream(TOKENS, "val"),
    )
    model, init_digests = initial_model(p, tokenizer, TOKENS)
    inputs = {
        "seed": seed,
        "model": p.model.model_dump(mode="json"),
        "pretrain": p.pretrain.model_dump(mode="json"),
        "data/tokens": sha256(TOKENS / "meta.json"),  # which holds every shard's digest
    }
    inputs |= init_digests | code_version()
    state = State("pretrain", inputs)
    with training_stage(p, state) as (run, timing):
        if processes.is_main():
            before_training(pretrain_plan(p, model.config), state.directory)
        val_set = TokenWindows(val, length, across, partial=True)
        names, places, _ = validation_sources(TOKENS, val)
        sample = ValSample(val, tokenizer, p.pretrain.eval_tokens, names, places)
        quick = TokenWindows(sample, length, across, partial=True)
        if processes.is_main():
            print(
                f"pretrain: validation between steps reads {len(sample):,} tokens: {sample.describe()}",
                flush=True,
            )
        trainer = Trainer(
            model, train_set, val_set, quick, p.pretrain, p.pretrain.steps, seed, state, run
        )
        result = trainer.run()
        by_source = source_losses(trainer.engine, val_set, TOKENS)
        trainer.engine.gather()
        if not processes.is_main():
            return  # the first process writes
        timing |= result.timing
        metrics = {
            "val_loss": result.val_loss,
            "val_bits_per_byte": result.val_loss * val_set.predicted / math.log(2) / val.bytes,
            "val_perplexity": math.exp(result.val_loss),
            "train_loss": result.train_loss,
            "parameters": model.config.parameters(),
            "parameters_embedding": model.model.embed_tokens.weight.numel(),
            "tokens": result.tokens,
            "epochs": result.tokens / (train_set.num_rows * length),
            "steps": result.steps,
            "batch_tokens": p.pretrain.batch_tokens,
            "flops": result.flops,
        }
        with whole_directory(BASE, outputs.MODEL) as directory:
            save_model(model, directory, init, tokenizer.eos_id)
            tokenizer.save(directory)
        write_history("metrics/pretrain_history.csv", result.history)
        write_json(
            "metrics/pretrain.json",
            metrics | by_source | {"quick_validation": sample.about(sample.names)},
        )
        run.log_metrics(metrics, step=result.tokens)
    print(
        f"pretrain: validation loss {result.val_loss:.4f} · perplexity {metrics['val_perplexity']:.2f} → {BASE}"
    )


if __name__ == "__main__":
    run_stage(on_all_devices(main, "stages.pretrain"))
