"""Score the aligned model beside the one that it was made from: metrics/aligned."""

from __future__ import annotations

from pathlib import Path

from llm import params
from llm.data.shards import TokenStream
from llm.data.val_sample import validation_sample
from llm.evaluate import baselines, table, test_sets
from llm.evaluate.contestant import Contestant, answer_tests, read_text
from llm.evaluate.scorebook import ScoreBook
from llm.parallel.launch import on_all_devices
from llm.params.align import with_method
from llm.runtime import outputs
from llm.runtime.io import whole_directory, write_json
from llm.runtime.stage import run_stage
from llm.runtime.timing import stage_timing

MIX, TOKENS, ALIGNED = Path("data/mix"), Path("data/tokens"), Path("models/aligned")
OUT = Path("metrics/aligned")


def main() -> None:
    p = params.load()
    a, e = with_method(p.align), p.evaluate
    import torch

    from llm.model.hf_files import load_model
    from llm.parallel import hardware, processes

    tests = test_sets.read_tests(MIX / "test", e.examples)
    device = hardware.device()
    with (
        processes.process_group(),
        processes.on_main(stage_timing("evaluate_aligned"), {}),
        processes.on_main(whole_directory(OUT, outputs.ALIGNED_SCORES), Path()) as directory,
    ):
        count, file = baselines.TRAIN_EXAMPLES, MIX / "train.parquet"
        examples = {test.name: test_sets.train_examples(file, test.name, count) for test in tests}
        book = ScoreBook(directory, e.bootstrap, e.confidence, p.seed)
        is_main = processes.is_main()
        for name, path in (("before", Path(a.base)), ("aligned", ALIGNED)):
            model = Contestant(name, load_model(path, device, torch.float32), path, True)
            sample = validation_sample(
                TOKENS, TokenStream(TOKENS, "val"), model.tokenizer, e.perplexity_tokens
            )
            answer_tests(p, model, tests, examples, book if is_main else None)
            read_text(model, sample, [""] * len(sample.document_bytes), book if is_main else None)
        if not is_main:
            return  # the main process scores and writes
        write_json(directory / "evaluate.json", book.results)
        write_json(directory / "comparison.json", book.comparison("before", "aligned"))
    print(table.render(book.results, {}, {}))
    for task, metrics in book.comparison("before", "aligned").items():
        for metric, d in metrics.items():
            print(
                f"{task} {metric}: {d['difference']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}], p = {d['p_value']:.4f}"
            )


if __name__ == "__main__":
    run_stage(on_all_devices(main, "stages.evaluate_aligned"))
