"""Train small runs, fit a scaling law and predict a larger run: metrics/scaling.json."""

from __future__ import annotations

from pathlib import Path

from llm import params
from llm.parallel.launch import on_all_devices
from llm.runtime.io import write_bytes, write_json
from llm.runtime.stage import run_stage
from llm.tokenizer.bpe import Tokenizer
from llm.tracking.run import stage as tracked_stage


def main() -> None:
    p = params.load()
    from llm.experiments import scaling_ladder
    from llm.parallel import processes
    from llm.report.figures import curves, scaling
    from llm.runtime.timing import stage_timing
    from llm.train.training_log import Tracker, Untracked

    vocabulary = Tokenizer.load(Path(params.SCRATCH)).vocab_size
    rungs = scaling_ladder.rungs(p, vocabulary)
    others: Tracker = Untracked()
    with (
        processes.process_group(),
        processes.on_main(stage_timing("scaling"), {}),
        processes.on_main(tracked_stage(p, "scaling"), others) as tracked,
    ):
        if processes.is_main():
            scaling_ladder.announce(rungs)
        losses = []
        for number, rung in enumerate(rungs, 1):
            losses.append(scaling_ladder.run(rung, scaling_ladder.Prefixed(tracked, rung.name)))
            if processes.is_main():
                run = f"run {number} of {len(rungs)}, {rung.name}"
                print(f"scaling: {run}: loss {losses[-1]:.4f}", flush=True)
        if not processes.is_main():
            return  # the main process writes
        result = scaling_ladder.conclude(p, rungs, losses, vocabulary)
        write_json(scaling_ladder.OUT, result)
        svg = curves.for_file(scaling.draw(result))
        write_bytes(scaling_ladder.OUT.with_suffix(".svg"), svg.encode())
        constants = {name: score["value"] for name, score in result["law"].items()}
        tracked.log_metrics(constants | {"held_back_error": result["held_back"]["error"]}, step=0)
    print("\n".join(scaling_ladder.describe(result)))


if __name__ == "__main__":
    run_stage(on_all_devices(main, "stages.scaling"))
