"""The download stage: exactly the data sets of the params, whole or not at all, and never the same
work twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llm import params
from llm.errors import UserError
from llm.sources import download as sources
from llm.sources.raw import read
from stages import download

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two small data sets of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("one\n<|endoftext|>\ntwo\n")
    (tmp_path / "sst.tsv").write_text(
        "sentence\tlabel\n" + "".join(f"s{i}\t{i % 2}\n" for i in range(30)) + "broken\n"
    )
    configure(
        pretrain={"source": "files", "paths": ["texts"]},
        sst2={
            "source": "files",
            "paths": ["sst.tsv"],
            "kind": "classification",
            "labels": ["bad", "good"],
        },
    )
    return tmp_path


def configure(**data_sets: dict[str, object]) -> None:
    p = yaml.safe_load((ROOT / "params.yaml").read_text())
    p["download"] = data_sets
    p["mix"]["tasks"] = {name: {"weight": 1.0} for name in data_sets if name != "pretrain"}
    Path("params.yaml").write_text(yaml.safe_dump(p, sort_keys=False))


def snapshot() -> dict[str, bytes]:
    return {
        p.as_posix(): p.read_bytes() for p in sorted(Path("data/raw").rglob("*")) if p.is_file()
    }


def test_every_data_set_gets_records_and_a_manifest(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download.main()
    assert sorted(os.listdir("data/raw")) == ["pretrain", "sst2"]
    assert [r["text"] for r in read(Path("data/raw/pretrain"))] == ["one", "two"]
    manifest = json.loads(Path("data/raw/sst2/manifest.json").read_text())
    keys = "name kind source revision licence rows bytes files kept dropped rejected notes"
    assert set(manifest) >= set(keys.split())
    assert (manifest["kind"], manifest["rows"], manifest["rejected"]["count"]) == (
        "classification",
        30,
        1,
    )
    assert manifest["kept"] == {"sst.tsv": 30}
    assert manifest["labels"] == {"bad": 15, "good": 15}
    assert str(workspace) not in json.dumps(manifest)
    printed = capsys.readouterr().out
    assert "sst2" in printed
    assert "sst.tsv:32: wrong number of fields" in printed
    assert json.loads(Path("metrics/timing/download.json").read_text())["seconds"] >= 0


def test_a_second_run_gives_the_same_bytes_and_removes_data_sets_that_left_the_params(
    workspace: Path,
) -> None:
    download.main()
    first = snapshot()
    Path("data/raw/stale").mkdir()
    download.main()
    assert snapshot() == first
    assert not Path("data/raw/stale").exists()
    other = {"source": "files", "paths": ["sst.tsv"], "kind": "classification"}
    configure(pretrain={"source": "files", "paths": ["texts"]}, other=other)
    download.main()
    assert sorted(os.listdir("data/raw")) == ["other", "pretrain"]


def test_a_run_that_broke_off_keeps_what_is_finished_and_leaves_no_half_output(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = sources.write_raw

    def counting(
        name: str, kind: str, source: params.Source, out: Path, copies: Path
    ) -> dict[str, object]:
        written.append(name)
        return real(name, kind, source, out)

    monkeypatch.setattr(download, "write_raw", counting)
    good = Path("sst.tsv").read_text()
    Path("sst.tsv").write_text("sentence\tlabel\nbroken\n")
    with pytest.raises(UserError, match=r"sst.tsv:2: wrong number of fields"):
        download.main()
    assert not Path("data/raw").exists()
    Path("sst.tsv").write_text(good)
    download.main()
    assert written == ["pretrain", "sst2", "sst2"]
    download.main()
    assert written == ["pretrain", "sst2", "sst2", "pretrain", "sst2"], (
        "a finished run is not taken for a new one's work"
    )


def test_a_changed_file_is_read_again_after_a_run_that_broke_off(workspace: Path) -> None:
    Path("sst.tsv").write_text("sentence\tlabel\nbroken\n")
    with pytest.raises(UserError):
        download.main()
    Path("texts/a.txt").write_text("three")
    Path("sst.tsv").write_text("sentence\tlabel\nfine\t1\n")
    download.main()
    assert [r["text"] for r in read(Path("data/raw/pretrain"))] == ["three"]


def test_the_stage_ends_with_one_message_and_imports_no_torch(workspace: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = (
        "import sys; from llm.runtime.stage import run_stage; from stages.download import main; run_stage(main); "
        "assert not {'torch', 'datasets', 'mlflow'} & set(sys.modules), 'heavy imports'"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    os.truncate("texts/a.txt", 0)
    run = subprocess.run(
        [sys.executable, "-m", "stages.download"], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "error: texts/a.txt: the file is empty" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_embedded_source_goes_through_the_same_door(workspace: Path) -> None:
    configure(
        pretrain={"source": "docs", "packages": ["networkx"], "max_documents": 5},
        classification={"source": "files", "paths": ["sst.tsv"]},
    )
    download.main()
    manifest = json.loads(Path("data/raw/pretrain/manifest.json").read_text())
    assert manifest["rows"] == 5
    assert manifest["dropped"]["beyond max_documents"] > 0
    assert "networkx" in manifest["revision"]


def test_what_broke_off_under_other_params_does_not_stay_on_the_disk(workspace: Path) -> None:
    Path("sst.tsv").write_text("sentence\tlabel\nbroken\n")
    for size in (1, 2):
        with pytest.raises(UserError, match="wrong number of fields"):
            download.main()
        begun = sorted(path.name.rpartition("-")[0] for path in Path(".state/download").iterdir())
        assert begun == ["pretrain", "sst2"]
        Path("sst.tsv").write_text("sentence\tlabel\n" + "broken\n" * (1 + size))
    Path("sst.tsv").write_text("sentence\tlabel\nfine\t1\n")
    download.main()
    assert not Path(".state/download").exists()
