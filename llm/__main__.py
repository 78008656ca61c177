"""`python -m llm`: what is not a pipeline stage."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from importlib import import_module
from typing import TextIO

from llm.cli.arguments import at_least
from llm.errors import run_stage


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = argparse.ArgumentParser(prog="python -m llm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ui", help="open MLflow's pages on this repository's runs")
    plan = commands.add_parser("plan", help="size, steps, FLOPs, time, memory and disk of the run of params.yaml")
    plan.add_argument("preset", nargs="?", help="as if presets/PRESET.yaml were on params.yaml")
    plan.add_argument("--gpu", help="for this kind of GPU, which need not be here, e.g. a100-40gb, h100")
    plan.add_argument("--gpus", type=at_least(1), default=1, help="how many of them (default: %(default)s)")
    plan.add_argument("--price", type=at_least(0, float), help="of a GPU for an hour: says what the run costs")
    plan.add_argument("--json", action="store_true", help="the same as JSON, in bytes and seconds")
    preset = commands.add_parser("preset", help="merge presets/NAME.yaml into params.yaml")
    preset.add_argument("name", nargs="?", help="without a name: list them")
    state = commands.add_parser("state", help="list training states; --prune deletes them")
    state.add_argument("--prune", action="store_true", help="delete all states but the newest of each stage")
    status = commands.add_parser("status", help="the stages that run now, in the workspace, temporary and queued")
    status.add_argument("--json", action="store_true", help="the same as JSON")
    status.add_argument("--watch", type=at_least(0.1, float), metavar="SECONDS", help="again every so many seconds")
    commands.add_parser(
        "sources",
        help="files of download.*.paths that are not what data/raw was made of; fails where an output directory holds "
        "files that no stage writes",
    )
    for name, purpose in (
        ("generate", "continue or answer prompts, one or a file of them"),
        ("chat", "talk to the models in the terminal"),
        ("serve", "OpenAI's HTTP interface, and a page to talk to two models side by side"),
        ("tokens", "put the token shards where other machines read them (docs/SCALE.md)"),
    ):
        import_module(f"llm.cli.{name}").add_arguments(commands.add_parser(name, help=purpose, description=purpose))
    export = commands.add_parser("export", help="write the model for other tools, with a model card")
    export.add_argument("--to", required=True, choices=["hf", "gguf", "pt"])
    export.add_argument("--model", default="models/finetuned", help="model directory (default: %(default)s)")
    export.add_argument("--adapter", help="a PEFT directory to merge into the model")
    export.add_argument("--dtype", default="f16", choices=["f32", "f16", "q8_0"], help="of gguf (default: %(default)s)")
    export.add_argument("--out", help="directory (default: exports/<the model's name>-<form>, of gguf with its type)")
    compare = commands.add_parser("compare", help="which scores of experiments differ, and how surely; as a page too")
    compare.add_argument("revisions", nargs="+", help="experiments, git revisions or `workspace`; the first is A")
    compare.add_argument("--models", nargs=2, default=("finetuned", "finetuned"), metavar=("OF_A", "OF_B"))
    compare.add_argument("--html", metavar="FILE", help="params, scores, curves and answers as one HTML file")
    compare.add_argument("--plot", metavar="FILE", help="where the figure of two goes (default: compare.svg)")
    compare.add_argument("--json", action="store_true", help="the same as JSON")
    seeds = commands.add_parser(
        "seeds", help="mean and spread of the scores over experiments that differ in seeds only"
    )
    seeds.add_argument(
        "revisions", nargs="*", help="experiments or git revisions (default: the workspace and its like)"
    )
    seeds.add_argument("--json", action="store_true", help="the same as JSON")
    tune = commands.add_parser("tune", help="let Optuna choose params by running DVC experiments (docs/EXPERIMENTS.md)")
    tune.add_argument("file", nargs="?", default="tuning.yaml", help="what to search (default: %(default)s)")
    commands.add_parser("dvc-plots", help="make `dvc plots` draw without a network (`make` does it once)")
    return parser


def main() -> None:
    arguments = parser().parse_args()
    if arguments.command == "ui":
        from llm.tracking.ui import start

        start()
    elif arguments.command == "plan":
        from llm.plan.show import show_plan

        show_plan(arguments.json, arguments.preset, arguments.gpu, arguments.gpus, arguments.price)
    elif arguments.command == "preset":
        from llm.params.presets import apply_preset, list_presets

        apply_preset(arguments.name) if arguments.name else list_presets()
    elif arguments.command == "state":
        from llm.train.checkpoint.prune import list_states, prune_states

        prune_states() if arguments.prune else list_states()
    elif arguments.command == "status":
        from llm.tracking.status import show_status

        show_status(arguments.json, arguments.watch)
    elif arguments.command == "sources":
        from llm.runtime.outputs import refuse_others
        from llm.sources.changed_files import show as show_sources

        refuse_others()
        show_sources()
    elif arguments.command == "compare":
        from llm.experiments.compare import show

        show(arguments.revisions, tuple(arguments.models), arguments.plot, arguments.json, arguments.html)
    elif arguments.command == "seeds":
        from llm.experiments.seeds import show_seeds

        show_seeds(arguments.revisions, arguments.json)
    elif arguments.command == "tune":
        from pathlib import Path

        from llm.experiments.tune import tune as run_tune

        run_tune(Path(arguments.file))
    elif arguments.command == "dvc-plots":
        from llm.experiments.dvc_plots import use_offline_page

        use_offline_page()
    elif arguments.command in ("generate", "chat", "serve", "tokens"):
        import_module(f"llm.cli.{arguments.command}").run(arguments)
    elif arguments.command == "export":
        _export(arguments)


def _export(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from llm.export import default_directory, export

    model, adapter = Path(arguments.model), Path(arguments.adapter) if arguments.adapter else None
    out = Path(arguments.out) if arguments.out else default_directory(arguments.to, model, arguments.dtype, adapter)
    print(f"export: {export(arguments.to, model, out, arguments.dtype, adapter)}")


def run() -> None:
    """A command of the shell: one whose reader has read enough, as in `… | head`, ends without a word.

    Asked to end by a signal, it ends as after Ctrl-C: what it started ends first.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # and not ignored, as under nohup
            signal.signal(number, _end)
    try:
        run_stage(main, heedless=False)
        sys.stdout.flush()
    except BrokenPipeError:
        _forget(sys.stdout)
        _forget(sys.stderr)
        sys.exit(128 + signal.SIGPIPE)
    except SystemExit:  # with a message for stderr, or after the help
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _forget(sys.stdout)
        raise


def _forget(stream: TextIO) -> None:
    """Send a stream without a reader to /dev/null, or Python complains when it flushes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    run()
