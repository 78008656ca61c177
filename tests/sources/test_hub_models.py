"""Models come from the hub whole, at their commit, and without what could run code."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llm.errors import UserError
from llm.sources import hub_models

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "modeling_evil.py": b"raise SystemExit",
    "pytorch_model.bin": b"\x80\x04.",
    "onnx/model.onnx": b"x",
}


class Hub(BaseHTTPRequestHandler):
    """The two calls of the hub's API that a download makes."""

    files = FILES
    asked: list[str] = []  # noqa: RUF012 - shared by all requests on purpose

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, body: bool) -> None:
        name = self.path.split(f"/resolve/{COMMIT}/")[-1]
        if self.path.startswith(f"/api/models/org/tiny/revision/{COMMIT}"):
            siblings = [{"rfilename": file} for file in self.files]
            content = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()
        elif self.path.startswith(f"/api/models/org/tiny/tree/{COMMIT}"):
            tree = [
                {"type": "file", "path": k, "size": len(v), "oid": "0" * 40}
                for k, v in self.files.items()
            ]
            content = json.dumps(tree).encode()
        elif name in self.files:
            self.asked.append(name)
            content = self.files[name]
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    Hub.files, Hub.asked = FILES, []
    yield Hub
    server.shutdown()


def test_config_weights_and_tokenizer_come_and_nothing_else(hub: type[Hub], tmp_path: Path) -> None:
    size = hub_models.fetch("org/tiny", COMMIT, tmp_path / "tiny")
    wanted = {"config.json", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in (tmp_path / "tiny").iterdir()} == wanted
    assert set(hub.asked) == wanted
    assert size == sum(len(FILES[name]) for name in wanted)
    (tmp_path / "tiny" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"tiny holds notes\.txt"):
        hub_models.fetch("org/tiny", COMMIT, tmp_path / "tiny")
    assert (tmp_path / "tiny" / "notes.txt").read_text() == "mine"


def test_a_model_of_pickles_is_refused_and_leaves_nothing(hub: type[Hub], tmp_path: Path) -> None:
    hub.files = {name: content for name, content in FILES.items() if name != "model.safetensors"}
    with pytest.raises(UserError, match="pickled"):
        hub_models.fetch("org/tiny", COMMIT, tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_the_hub_does_not_have_is_named(hub: type[Hub], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="org/none"):
        hub_models.fetch("org/none", COMMIT, tmp_path / "none")


def test_without_a_network_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        hub_models.fetch("org/tiny", COMMIT, tmp_path / "tiny")
