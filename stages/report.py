"""Write metrics/report/ and metrics/summary.json from what the other stages left, and complete the
MLflow run.
"""

from __future__ import annotations

from llm import params
from llm.report import predictions, summary
from llm.report.page import write_report
from llm.report.tables import write_tables
from llm.runtime import dvc_lock, outputs
from llm.runtime.io import whole_directory, write_json
from llm.runtime.stage import run_stage
from llm.runtime.timing import stage_timing
from llm.tracking import metrics_files
from llm.tracking import run as tracking
from llm.tracking.mlflow_store import Score


def main() -> None:
    """Params read: all (they are shown).

    Outputs: metrics/report/{report.html, report.md, figures, numbers, tables},
        metrics/summary.json.
    """
    p = params.load()
    with stage_timing("report"):
        with (
            tracking.stage(p, "report") as run,
            whole_directory("metrics/report", outputs.REPORT) as directory,
        ):
            write_json(summary.PATH, summary.summary(metrics_files.metrics()))
            about = {"name": run.state["name"], "id": run.run_id or ""}
            found = write_report(p, directory, about)
            tables = [f"metrics/report/tables/{path.name}" for path in write_tables(directory)]
        score = Score(found["overall"], *predictions.tests("finetuned"))
        tracking.finish(
            p, ("metrics", "params.yaml"), tables, model="models/finetuned", score=score
        )
    print("report: metrics/report/report.html")


if __name__ == "__main__":
    run_stage(main)
    dvc_lock.release()
