"""A browser, a finished study, and MLflow's pages over its database: each started once."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.finished_study import Finished, finish_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Route

PATIENCE_S = 30
"""For MLflow's pages on a busy machine; what is waited for usually comes within seconds."""


@pytest.fixture(scope="session")
def finished(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Only where there is a browser: else all of it would be made for nothing."""
    assert browser.is_connected()
    return finish_study(tmp_path_factory.mktemp("browsed"))


@pytest.fixture(scope="session")
def mlflow_ui(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of MLflow's pages, by the command that the study printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program, *options = shlex.split(finished.said_after("compare:"))
    assert program == "mlflow"
    log = tmp_path_factory.mktemp("ui") / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *options, "--port", str(port), "--workers", "1"],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(process, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"mlflow ui did not start: {log.read_text()}")


@dataclass
class Watched:
    """A page, and what went wrong on it."""

    page: Page
    home: str
    """How the addresses begin that the page may ask for."""
    complaints: list[str] = field(default_factory=list)
    """Errors in the console, and requests to anywhere else, which were refused."""

    def watch(self) -> None:
        self.page.set_default_timeout(PATIENCE_S * 1000)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.route("**/*", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not _is_mlflows_own(message):
            self.complaints.append(f"console: {message.text} ({message.location})")

    def _on_request(self, route: Route) -> None:
        if route.request.url.startswith(self.home):
            route.continue_()
        else:
            self.complaints.append(f"request to {route.request.url}")
            route.abort()


def _is_mlflows_own(message: ConsoleMessage) -> bool:
    """MLflow 3.17 asks who is logged in; without its login plug-in there is no such page, 404."""
    return message.location["url"].endswith("/ajax-api/2.0/mlflow/users/current")


@contextlib.contextmanager
def watched(
    browser: Browser, home: str, width: int = 1280, height: int = 800, *, scripts: bool = True
) -> Iterator[Watched]:
    """A page of a browser that knows nothing yet."""
    opened = browser.new_context(
        viewport={"width": width, "height": height}, java_script_enabled=scripts
    )
    try:
        found = Watched(opened.new_page(), home)
        found.watch()
        yield found
    finally:
        opened.close()
