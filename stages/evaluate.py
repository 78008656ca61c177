"""Score the models and the baselines on held-out examples and text: metrics/evaluate.json."""

from __future__ import annotations

from pathlib import Path

from llm import params
from llm.corpus.clean.plan import written
from llm.data.shards import TokenStream, check_tokenizer
from llm.data.val_sample import validation_sample
from llm.evaluate import baselines, language, table, test_sets, text_baselines
from llm.evaluate.answers import Answers
from llm.evaluate.contestant import Contestant, answer_tests, read_text
from llm.evaluate.scorebook import LANGUAGE_MODELING, ScoreBook
from llm.parallel.launch import on_all_devices
from llm.runtime import outputs
from llm.runtime.io import whole_directory, write_bytes, write_json
from llm.runtime.stage import run_stage
from llm.runtime.timing import stage_timing
from llm.tokenizer.bpe import Tokenizer
from llm.tracking.run import stage as tracked_stage

FINETUNED, MIX, TOKENS = Path("models/finetuned"), Path("data/mix"), Path("data/tokens")
RAW, PREDICTIONS = Path("data/raw/pretrain"), Path("metrics/predictions")


def main() -> None:
    """Score all models and baselines.

    Params read: evaluate, finetune.base, tokenize.clean, seed.

    Outputs: metrics/{evaluate,comparison,contamination}.json, metrics/scores.csv,
        metrics/predictions.
    """
    p = params.load()
    import torch

    from llm.model.hf_files import load_model
    from llm.parallel import hardware, processes

    e, base = p.evaluate, Path(p.finetune.base)
    check_tokenizer(TOKENS, base, "evaluate")
    tests = test_sets.read_tests(MIX / "test", e.examples)
    train, val = TokenStream(TOKENS, "train"), TokenStream(TOKENS, "val")
    device = hardware.device()
    with (
        processes.process_group(),
        processes.on_main(stage_timing("evaluate"), {}) as timing,
        processes.on_main(tracked_stage(p, "evaluate"), None) as tracked,
        processes.on_main(whole_directory(PREDICTIONS, outputs.PREDICTIONS), Path()) as predictions,
    ):
        timing["device"] = hardware.name(device)
        count, file = baselines.TRAIN_EXAMPLES, MIX / "train.parquet"
        examples = {test.name: test_sets.train_examples(file, test.name, count) for test in tests}
        every = {
            test.name: test_sets.train_examples(path, test.name, count)
            for test in tests
            if (path := MIX / "all" / f"{test.name}.parquet").exists()
        }
        book = ScoreBook(predictions, e.bootstrap, e.confidence, p.seed)
        is_main, tokenizer = tracked is not None, Tokenizer.load(base)
        text = validation_sample(TOKENS, val, tokenizer, e.perplexity_tokens)
        documents = written(p.tokenize.clean, TOKENS).records(RAW, ["text", "source"])
        source_names = language.sources(text, tokenizer, documents if is_main else iter(()))
        source_names = language.largest(source_names, text.document_bytes)
        models = {"base": (base, tokenizer.is_chat), "finetuned": (FINETUNED, True)}
        for name, (directory, chat) in models.items():
            model = load_model(directory, device, torch.float32)
            contestant = Contestant(name, model, directory, chat)
            answer_tests(p, contestant, tests, examples, book if is_main else None)
            read_text(contestant, text, source_names, book if is_main else None)
            context = contestant.model.config.max_position_embeddings
            del contestant, model
        if tracked is None:
            return  # the main process scores and writes
        for test in tests:
            guesses = baselines.answers(
                test.kind, test.rows, examples[test.name], p.seed, every.get(test.name, ())
            )
            for name, texts in guesses.items():
                book.answers(f"baseline:{name}", test, Answers(texts, {}, [], f"baseline:{name}"))
        text_results = text_baselines.text_baselines_and_contamination(
            tests, test_sets.train_texts(file), train, text, tokenizer, context
        )
        for name, measures in text_results.measures.items():
            book.add(name, LANGUAGE_MODELING, measures)
        comparison = {
            "finetuned - base": book.comparison("base", "finetuned"),
            "finetuned - best baseline": book.against_baselines("finetuned"),
        }
        headlines = table.headlines(book.results).items()
        tracked.log_metrics({".".join(key): value for key, value in headlines})
        write_bytes("metrics/scores.csv", table.scores_csv(book.results).encode())
        write_json("metrics/contamination.json", text_results.contamination_by_text)
        write_json("metrics/comparison.json", comparison)
        scores = {**book.results, "contamination": text_results.contamination}
        write_json("metrics/evaluate.json", scores)
    shares = text_results.contamination, text_results.contamination_by_text
    print(table.render(book.results, *shares))
    print("\nevaluate: → metrics/evaluate.json, metrics/predictions")


if __name__ == "__main__":
    run_stage(on_all_devices(main, "stages.evaluate"))
