"""Credentials in addresses are shown nowhere, and refused in params; ~/.netrc is taken."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from llm import params
from llm.addresses import all_public, public, without_credentials
from llm.errors import UserError
from llm.runtime.remote_fs import Address
from llm.sources.download import write_raw
from llm.tracking import executions
from tests.conftest import ROOT

CUT = {
    "https://me:pa@ss@host/a.csv?token=abc&v=2#top": "https://host/a.csv?v=2#top",
    "https://me:p?a/s#s@host/a.csv": "https://host/a.csv",
    "https://me:p'a s\"s@host/a.csv": "https://host/a.csv",
    "https://me%3Apass@host/a.csv": "https://host/a.csv",
    "https://ghp_x@host/a.csv": "https://host/a.csv",
    "https://host/a.csv?X-Amz-Date=1&X-Amz-Credential=k&X-Amz-Signature=s": "https://host/a.csv?X-Amz-Date=1",
    "https://host/a.csv?sv=1&sig=s%3D": "https://host/a.csv?sv=1",
    "https://host/a.csv?%74oken=abc&b=1": "https://host/a.csv?b=1",
    "https://host/a.csv?token=a'b c": "https://host/a.csv",
    "https://host/a.csv#access_token=abc": "https://host/a.csv",
    "https://host/?url=https%3A%2F%2Fme%3Apass%40other%2Fa": "https://host/",
    "s3://AKIA:s/e+c@bucket/a.csv": "s3://bucket/a.csv",
    "simplecache::https://me:pass@host/a.csv": "simplecache::https://host/a.csv",
    "zip://a.csv::https://me:pass@host/a.zip": "zip://a.csv::https://host/a.zip",
    "postgresql+psycopg2://me:pass@host:5432/mlflow": "postgresql+psycopg2://host:5432/mlflow",
    "postgresql://host/mlflow?user=me&password=pass": "postgresql://host/mlflow?user=me",
}
INNOCENT = [
    "https://host/a.csv?download=true&v=2&tokens=5",
    "https://host:8080/a@b/c.csv?mail=a@b",
    "https://[::1]:8080/a@b",
    "abfs://container@account.dfs.core.windows.net/a.csv",
    "ssh://git@host/a",
    "data/a:b@c?token=x.csv",
    "sqlite:////home/me/mlflow.db",
]


@pytest.mark.parametrize("address", CUT)
def test_what_is_secret_in_an_address_is_cut_out(address: str) -> None:
    assert public(address) == CUT[address]
    assert public(CUT[address]) == CUT[address]
    if not {" ", '"'} & set(address):  # in prose an address ends there
        shown = without_credentials(f"401, url={address} (first)\nand {address}")
        assert shown == f"401, url={CUT[address]} (first)\nand {CUT[address]}"
    with pytest.raises(
        UserError, match=r"params: download\.pretrain\.paths\[0\]: .*~/\.netrc"
    ) as caught:
        params.parse({"download": {"pretrain": {"source": "files", "paths": [address]}}})
    assert CUT[address] in str(caught.value)
    assert "pass" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize("address", INNOCENT)
def test_what_is_no_secret_stays(address: str) -> None:
    assert public(address) == address
    if "://" in address:
        assert without_credentials(f"see {address} for more") == f"see {address} for more"


def test_a_pinned_digest_is_refused_with_its_address() -> None:
    source = {"source": "files", "paths": ["a"], "sha256": {"https://host/a?sig=abc": "0" * 64}}
    with pytest.raises(UserError, match="given with a user, a password, a token") as caught:
        params.parse({"download": {"pretrain": source}})
    assert "abc" not in str(caught.value)


def test_the_params_of_this_repository_hold_no_credentials() -> None:
    params.load(ROOT / "params.yaml")


def test_errors_of_other_packages_are_shown_without_the_path_they_quote() -> None:
    quoted = "HTTPSConnectionPool: Max retries exceeded with url: /a.csv?v=1&X-Amz-Signature=abc (Caused by …)"
    assert str(UserError(quoted)) == quoted.replace("&X-Amz-Signature=abc", "")


def test_nested_values_are_cleaned_key_by_key() -> None:
    value = {"https://me:pass@host/a": ["https://host/?token=abc", 1, None, {"a": "b"}]}
    assert all_public(value) == {"https://host/a": ["https://host/", 1, None, {"a": "b"}]}


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An address that demands `me` with `p@ss`."""
    body = b'{"text": "the text"}\n'
    wanted = "Basic " + base64.b64encode(b"me:p@ss").decode()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            allowed = self.headers.get("Authorization") == wanted
            self.send_response(200 if allowed else 401)
            self.send_header("Content-Length", str(len(body) if allowed else 0))
            self.end_headers()
            if allowed and self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD  # noqa: N815 - the name is http.server's

        def log_message(self, *args: Any) -> None:
            pass

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    fsspec.get_filesystem_class("http").clear_instance_cache()
    yield f"http://127.0.0.1:{http.server_port}/a.jsonl"
    http.shutdown()
    http.server_close()


def load(address: str, out: Path) -> dict[str, Any]:
    source = params.FilesSource.model_validate({"source": "files", "paths": [address]})
    return write_raw("pretrain", "pretrain", source, out, out.parent / "copies")


def test_credentials_of_https_come_from_netrc(guarded: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the server refuses it \(401\)\. .*netrc"):
        load(guarded, tmp_path / "out")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password p@ss\n")
    (tmp_path / "netrc").chmod(0o600)
    fsspec.get_filesystem_class("http").clear_instance_cache()
    assert load(guarded, tmp_path / "out")["rows"] == 1


def test_a_token_of_https_comes_from_fsspecs_own_configuration(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = {"Authorization": "Basic " + base64.b64encode(b"me:p@ss").decode()}
    monkeypatch.setattr(fsspec.config, "conf", {})
    fsspec.config.set_conf_env(
        fsspec.config.conf, {"FSSPEC_HTTP": json.dumps({"client_kwargs": {"headers": header}})}
    )
    monkeypatch.setattr(
        fsspec.spec,
        "apply_config",
        lambda cls, kw: fsspec.config.apply_config(cls, kw, fsspec.config.conf),
    )
    assert load(guarded, tmp_path / "out")["rows"] == 1


def test_an_address_of_the_environment_is_shown_without_credentials(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Address("nonsense://me:p@ss@host/a?token=abc", "LLM_STATE_URL")
    assert "LLM_STATE_URL=nonsense://host/a" in str(caught.value)
    assert "p@ss" not in str(caught.value)
    assert "abc" not in str(caught.value)
    address = Address("memory://me:p@ss@host/a?token=abc", "LLM_STATE_URL")
    shown = address.failed(OSError("403, url='memory://me:p@ss@host/a?token=abc'"))
    assert shown == "memory://host/a: 403, url='memory://host/a'"


def test_the_open_execution_on_disk_does_not_hold_the_stores_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:pa@ss@host/mlflow?password=abc")
    monkeypatch.chdir(ROOT)
    state = executions.current(params.load(), "pretrain")
    assert state["store"] == "postgresql://host/mlflow"
    assert executions.current(params.load(), "pretrain") == state
    assert not [
        path
        for path in tmp_path.rglob("*.json")
        if "pa@ss" in path.read_text() or "abc" in path.read_text()
    ]
