"""Score base and finetuned model and the baselines on held-out examples and text: metrics/evaluate.json."""

from __future__ import annotations

from pathlib import Path

from llm import params, tracking
from llm.data.shards import TokenStream, check_tokenizer
from llm.data.tokenizer import Tokenizer
from llm.errors import run_stage
from llm.evaluate import baselines, files, heldout, run, table
from llm.evaluate.scorebook import LANGUAGE_MODELING, ScoreBook
from llm.io import whole_directory, write_bytes, write_json
from llm.progress import Progress
from llm.timing import stage_timing

FINETUNED, MIX, TOKENS = Path("models/finetuned"), Path("data/mix"), Path("data/tokens")


def main() -> None:
    p = params.load()
    import torch

    from llm.model.files import load_model
    from llm.train import hardware

    e, base = p.evaluate, Path(p.finetune.base)
    check_tokenizer(TOKENS, base, "evaluate")
    tests = files.read_tests(MIX / "test", e.examples)
    models = {"base": (base, False), "finetuned": (FINETUNED, True)}  # directory, chat form
    train, val = TokenStream(TOKENS, "train"), TokenStream(TOKENS, "val")
    device = hardware.device()
    with (
        stage_timing("evaluate") as timing,
        tracking.stage(p, "evaluate") as tracked,
        whole_directory("metrics/predictions") as predictions,
    ):
        timing["device"] = hardware.name(device)
        book = ScoreBook(predictions, e.bootstrap, e.confidence, p.seed)
        for name, (directory, chat) in models.items():
            tokenizer = Tokenizer.load(directory)
            model = load_model(directory, device, torch.float32)
            context = model.config.max_position_embeddings
            for test in tests:
                with (
                    Progress(f"{name} · {test.name}", len(test.rows), "examples") as bar,
                    run.finite_logits(model, f"{directory}, {test.name}"),
                ):
                    answers = run.answer(model, tokenizer, test, e.max_new_tokens, chat, bar.update)
                book.answers(name, test, answers)
            with run.finite_logits(model, f"{directory}, {LANGUAGE_MODELING}"):
                measures = run.language_modeling(model, val, tokenizer, e.perplexity_tokens)
            book.add(name, LANGUAGE_MODELING, measures)
            del model
        for test in tests:
            examples = files.train_examples(MIX / "train.parquet", test.name, baselines.TRAIN_EXAMPLES)
            for name, texts in baselines.answers(test.kind, test.rows, examples, p.seed).items():
                book.answers(f"baseline:{name}", test, run.Answers(texts, {}, [], f"baseline:{name}"))
        text = heldout.text_baselines_and_contamination(
            tests, files.train_texts(MIX / "train.parquet"), train, val, tokenizer, e.perplexity_tokens, context
        )
        for name, measures in text.measures.items():
            book.add(name, LANGUAGE_MODELING, measures)
        tracked.log_metrics(table.flat(book.results, text.contamination))
        write_bytes("metrics/scores.csv", table.scores_csv(book.results).encode())
        write_json("metrics/contamination.json", text.contamination_by_text)
        write_json("metrics/evaluate.json", {**book.results, "contamination": text.contamination})
    print(table.render(book.results, text.contamination, text.contamination_by_text))
    print("\nevaluate: → metrics/evaluate.json, metrics/predictions")


if __name__ == "__main__":
    run_stage(main)
