"""The report and the summary of the other stages' metrics; completes the MLflow run."""

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
from llm.tracking.mlflow_store import Score
from llm.tracking.run import finish
from llm.tracking.run import stage as tracked_stage


def main() -> None:
    """Write the report.

    Params read: all; the report shows them.

    Outputs: metrics/report/{report.html, report.md, figures, numbers, tables},
        metrics/summary.json.
    """
    p = params.load()
    with stage_timing("report"):
        with (
            tracked_stage(p, "report") as tracked,
            whole_directory("metrics/report", outputs.REPORT) as directory,
        ):
            write_json(summary.PATH, summary.summary(metrics_files.metrics()))
            about = {"name": tracked.state["name"], "id": tracked.run_id or ""}
            data = write_report(p, directory, about)
            tables = [f"metrics/report/tables/{path.name}" for path in write_tables(directory)]
        score = Score(data["overall"], *predictions.tests("finetuned"))
        finish(p, ("metrics", "params.yaml"), tables, model="models/finetuned", score=score)
    print("report: metrics/report/report.html")


if __name__ == "__main__":
    run_stage(main)
    dvc_lock.release()
