"""Data sets of the hub, streamed through its own code from a local folder, and the errors without one."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from llm import params
from llm.errors import UserError
from llm.sources import hub
from llm.sources.download import write_raw
from llm.sources.raw import read


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A local data set directory with two splits, class names and a card."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features(
        {
            "sentence": Value("string"),
            "label": ClassLabel(names=["neg", "pos"]),
            "idx": Value("int32"),
        }
    )
    path = tmp_path / "sst"
    (path / "data").mkdir(parents=True)
    for split, n in {"train": 40, "test": 5}.items():
        rows = {
            "sentence": [f"{split} {i}" for i in range(n)],
            "label": [i % 2 for i in range(n)],
            "idx": list(range(n)),
        }
        Dataset.from_dict(rows, features=features).to_parquet(
            path / f"data/{split}-00000-of-00001.parquet"
        )
    (path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# card\n")
    return path


def from_hub(out: Path, dataset: Path | str, **options: Any) -> dict[str, Any]:
    source = params.HubSource(source="hub", id=str(dataset), revision="0123abcd", **options)
    return write_raw("set", "classification", source, out)


def test_a_local_data_set_streams_through_the_hubs_code_path(tmp_path: Path, dataset: Path) -> None:
    manifest = from_hub(tmp_path / "out", dataset, test_split="test")
    records = list(read(tmp_path / "out"))
    assert [r["split"] for r in records] == ["train"] * 40 + ["test"] * 5
    assert {r["label"] for r in records} == {"neg", "pos"}
    assert manifest["positive_label"] == "pos"
    from_hub(tmp_path / "validated", dataset, val_split="test")
    assert [r["split"] for r in read(tmp_path / "validated")] == ["train"] * 40 + ["validation"] * 5
    assert manifest["licence"] == "cc-by-4.0"
    assert manifest["revision"].startswith("sha256:")
    before = manifest["files"][0]["sha256"]
    assert from_hub(tmp_path / "again", dataset, test_split="test")["files"][0]["sha256"] == before


def test_streaming_stops_at_the_row_and_byte_budgets(tmp_path: Path, dataset: Path) -> None:
    assert from_hub(tmp_path / "a", dataset, max_documents=7)["rows"] == 7
    manifest = from_hub(tmp_path / "b", dataset, max_bytes=100)
    assert 100 <= manifest["bytes"] < 120
    assert "max_bytes" in manifest["notes"]


def test_a_byte_budget_is_reached_without_a_look_at_the_files_behind_it(
    tmp_path: Path, dataset: Path
) -> None:
    first = dataset / "data/train-00000-of-00001.parquet"
    first.rename(dataset / "data/train-00000-of-00003.parquet")
    for number in (1, 2):
        (dataset / f"data/train-0000{number}-of-00003.parquet").write_bytes(
            b"PAR1 is not parquet, and never read PAR1"
        )
    manifest = from_hub(tmp_path / "out", dataset, max_bytes=200)
    assert 200 <= manifest["bytes"] < 220
    assert manifest["rows"] < 40
    with pytest.raises(UserError, match=r"split train, after record 40"):
        from_hub(tmp_path / "out", dataset)


def test_a_wrong_split_or_configuration_is_named_with_those_there_are(
    tmp_path: Path, dataset: Path
) -> None:
    with pytest.raises(UserError, match=r"Bad split: nope.*train"):
        from_hub(tmp_path / "out", dataset, split="nope")
    with pytest.raises(UserError, match=r"'nope' not found"):
        from_hub(tmp_path / "out", dataset, config="nope")
    with pytest.raises(UserError, match=r"no column 'absent'.*'sentence'.*columns"):
        from_hub(tmp_path / "out", dataset, columns={"text": "absent"})


def test_code_that_comes_with_a_data_set_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "script").mkdir()
    (tmp_path / "script/script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="scripts are no longer supported"):
        from_hub(tmp_path / "out", tmp_path / "script")
    assert not (tmp_path / "ran").exists()


def test_without_a_network_the_hub_fails_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        from_hub(tmp_path / "out", "nyu-mll/glue", config="sst2")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for proxy in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with socket.socket() as closed:  # a port that nobody listens on
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(
        UserError, match=r"nyu-mll/glue: 127.0.0.1:\d+ cannot be reached.*source: files"
    ):
        from_hub(tmp_path / "out", "nyu-mll/glue", config="sst2")

    def swallowed(
        *_: Any, **__: Any
    ) -> None:  # as by a firewall, or a name server that does not answer
        time.sleep(3)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", swallowed)
    began = time.monotonic()
    with pytest.raises(UserError, match="no answer within"):
        hub.check_reachable("download.set")
    assert time.monotonic() - began < 1.5
