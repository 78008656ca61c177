"""Draw answers to training prompts and pair the best with the worst: data/preferences."""

from __future__ import annotations

from pathlib import Path

from llm import params
from llm.align import pair_files, preferences
from llm.evaluate.test_sets import read_tests
from llm.parallel.launch import on_all_devices
from llm.params.align import with_method
from llm.runtime import outputs
from llm.runtime.io import refuse_other_files, sha256, whole_directory, write_json
from llm.runtime.progress import Progress
from llm.runtime.stage import run_stage
from llm.runtime.timing import stage_timing
from llm.tasks.splits import listed
from llm.tokenizer.bpe import Tokenizer

MIX, OUT = Path("data/mix"), Path("data/preferences")


def main() -> None:
    p = params.load()
    a = with_method(p.align)
    refuse_other_files(OUT, outputs.PREFERENCES)  # before answers are drawn, not after
    kinds = {test.name: test.kind for test in read_tests(MIX / "test", 1)}
    examples = preferences.training_prompts(MIX / "train.parquet", a, p.seed)
    for task in a.tasks:
        preferences.rewards(kinds[task], [""], [""])  # refuses kinds without a reward
    import torch

    from llm.model.hf_files import digests, load_model, stop_ids
    from llm.parallel import hardware, processes

    base = Path(a.base)
    with processes.process_group(), processes.on_main(stage_timing("preferences"), {}):
        tokenizer = Tokenizer.load(base)
        model = load_model(base, hardware.device(), torch.float32).eval()
        stops = stop_ids(base, tokenizer) | {tokenizer.eos_id}
        total, quiet = len(examples) * a.samples, not processes.is_main()
        with Progress("preferences", total, "answers", quiet=quiet) as bar:
            answers = preferences.draw_answers(
                model, tokenizer, examples, a, p.seed, stops, bar.update
            )
        if not processes.is_main():
            return  # the main process writes
        pairs, dropped = preferences.choose_pairs(examples, answers, kinds, a.margin)
        fitting, too_long = preferences.fitting(pairs, tokenizer, a.sequence_length)
        dropped += too_long
        sides = preferences.split(fitting, a.val_fraction, dropped)
        counts = {side: len(own) for side, own in sides.items()}
        with whole_directory(OUT, outputs.PREFERENCES) as directory:
            for side, own in sides.items():
                pair_files.write_pairs(directory / f"{side}.parquet", own)
            manifest = {
                "prompts": len(examples),
                "answers": total,
                "pairs": counts,
                "without_a_pair": dict(sorted(dropped.items())),
                "from": {
                    "data/mix/train.parquet": sha256(MIX / "train.parquet"),
                    a.base: digests(base),
                },
            }
            write_json(directory / "manifest.json", manifest)
    print(
        f"preferences: {counts['train']:,} training and {counts['val']:,} validation pairs of {len(examples):,} "
        f"prompts ({listed(dropped)}) → {OUT}"
    )


if __name__ == "__main__":
    run_stage(on_all_devices(main, "stages.preferences"))
