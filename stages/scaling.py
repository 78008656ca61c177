"""A ladder of small runs, the law of their loss, and its prediction of a larger run: metrics/scaling.json."""

from __future__ import annotations

from pathlib import Path

from llm import params, tracking
from llm.data.tokenizer import Tokenizer
from llm.errors import run_stage
from llm.io import write_bytes, write_json
from llm.train.launch import on_all_devices


def main() -> None:
    p = params.load()
    from llm import ladder
    from llm.report import figures, scaling_figure
    from llm.timing import stage_timing
    from llm.train import distributed
    from llm.train.loop import Tracker, Untracked

    vocabulary = Tokenizer.load(Path(params.SCRATCH)).vocab_size
    rungs = ladder.rungs(p, vocabulary)
    others: Tracker = Untracked()
    with (
        distributed.processes(),
        distributed.on_first(stage_timing("scaling"), {}),
        distributed.on_first(tracking.stage(p, "scaling"), others) as tracked,
    ):
        if distributed.first():
            ladder.announce(rungs)
        losses = []
        for number, rung in enumerate(rungs, 1):
            losses.append(ladder.run(rung, ladder.Prefixed(tracked, rung.name)))
            if distributed.first():
                print(f"scaling: run {number} of {len(rungs)}, {rung.name}: loss {losses[-1]:.4f}", flush=True)
        if not distributed.first():
            return  # the first process writes
        found = ladder.conclude(p, rungs, losses, vocabulary)
        write_json(ladder.OUT, found)
        svg = figures.for_file(scaling_figure.draw(found))
        write_bytes(ladder.OUT.with_suffix(".svg"), svg.encode())
        constants = {name: score["value"] for name, score in found["law"].items()}
        tracked.log_metrics(constants | {"held_back_error": found["held_back"]["error"]}, step=0)
    print("\n".join(ladder.describe(found)))


if __name__ == "__main__":
    run_stage(on_all_devices(main, "stages.scaling"))
