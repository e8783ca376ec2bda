"""A spot node that is about to go says so to Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray
from ray._private.state import state

from cluster import spot
from tests.chaos.storm import quick_head
from tests.conftest import ROOT


class Metadata(ThreadingHTTPServer):
    """What an AWS instance asks about itself: version 2, which wants a token."""

    seconds: float | None = None
    """Until the node goes; None: no notice yet."""


class Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        right = self.path == "/latest/api/token"
        self.answer(200 if right else 404, "secret")

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != "secret":
            return self.answer(401, "")
        if self.path != "/latest/meta-data/spot/instance-action" or self.server.seconds is None:
            return self.answer(404, "")
        when = datetime.now(UTC) + timedelta(seconds=self.server.seconds)
        text = {"action": "terminate", "time": when.strftime("%Y-%m-%dT%H:%M:%SZ")}
        return self.answer(200, json.dumps(text))

    def answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    server = Metadata(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("MGDM_IMDS", address)
    monkeypatch.setattr(spot, "IMDS", address)
    yield server
    server.shutdown()


def test_a_notice_is_read(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a notice that is not understood, and none that is taken for one."""
    assert spot.notice() is None
    metadata.seconds = 120
    found = spot.notice()
    assert found == pytest.approx(119.5, abs=1)
    monkeypatch.setattr(spot, "IMDS", "http://127.0.0.1:9")
    assert spot.notice() is None, "not on AWS"


@pytest.mark.slow
@pytest.mark.cluster
def test_the_node_is_drained(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a command that Ray does not know, and a wrong node or deadline."""
    made = quick_head()
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    watcher = subprocess.Popen(
        [sys.executable, str(ROOT / "cluster" / "spot.py")], env={**os.environ}
    )
    ray.init(address=made.address, log_to_driver=False)
    # A node with nothing to do would be gone at once.
    busy = ray.remote(num_cpus=0)(lambda: time.sleep(600)).remote()
    try:
        time.sleep(2)
        assert watcher.poll() is None, "it waits"
        assert state.get_draining_nodes() == {}
        metadata.seconds = 120
        assert watcher.wait(timeout=90) == 0
        ((node, deadline),) = state.get_draining_nodes().items()
        assert node == ray.nodes()[0]["NodeID"]
        assert 60 < deadline / 1000 - time.time() < 121
    finally:
        watcher.kill()
        ray.cancel(busy, force=True)
        ray.shutdown()
        made.shutdown()
