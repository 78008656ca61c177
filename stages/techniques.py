"""Measure memory, time and loss of each training technique: metrics/timing/techniques.json."""

from __future__ import annotations

from llm import params
from llm.report.techniques import collect, mega
from llm.runtime.stage import run_stage
from llm.runtime.timing import stage_timing

# Steps of finetune.batch_tokens: enough for the loss to fall and for a steady time a step.
STEPS = 30


def main() -> None:
    p = params.load()
    from llm.experiments.techniques.run import measure_all
    from llm.parallel import hardware

    with stage_timing("techniques") as timing:
        timing["device"] = hardware.name(hardware.device())
        timing |= measure_all(p.finetune, STEPS)
    table = collect()
    assert table is not None
    for row in table["rows"]:
        print(
            f"{row['label']:44} {mega(row['peak_bytes']):>9} {row['step_seconds']:7.2f} s  loss {row['loss']:.3f}"
        )
        print(f"    {row['why']}")
    for reason in table["left_out"]:
        print(f"not measured: {reason}")
    print(
        "techniques: metrics/timing/techniques.json; `dvc repro -sf report` takes it into the report"
    )


if __name__ == "__main__":
    run_stage(main)
