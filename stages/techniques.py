"""Measure what each technique of training buys for the model at hand:
metrics/timing/techniques.json.
"""

from __future__ import annotations

from llm import params
from llm.report.techniques import collect, mega
from llm.runtime.stage import run_stage
from llm.runtime.timing import stage_timing

STEPS = (
    30  # of finetune.batch_tokens each: enough for the loss to fall and for a steady time a step
)


def main() -> None:
    p = params.load()
    from llm.experiments.techniques.run import measure_all
    from llm.parallel import hardware

    with stage_timing("techniques") as timing:
        timing["device"] = hardware.name(hardware.device())
        timing |= measure_all(p.finetune, STEPS)
    found = collect()
    assert found is not None
    for row in found["rows"]:
        print(
            f"{row['label']:44} {mega(row['peak_bytes']):>9} {row['step_seconds']:7.2f} s  loss {row['loss']:.3f}"
        )
        print(f"    {row['why']}")
    for reason in found["left_out"]:
        print(f"not measured: {reason}")
    print(
        "techniques: metrics/timing/techniques.json; `dvc repro -sf report` takes it into the report"
    )


if __name__ == "__main__":
    run_stage(main)
