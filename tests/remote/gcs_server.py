"""A small HTTP server with the part of Google Cloud Storage's JSON API that gcsfs calls.

It was written from Google's documentation and gcsfs's source. It proves that our requests are
answered as we read them there: conditions, pages, ranges, uploads in pieces, deletions in batches.
It proves nothing of Google's own consistency, limits of rate, permissions or authentication.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

import fsspec
import pytest

BUCKET, PAGE = "mgdm-tests", 7
"""Google gives up to 1000 names at once; so few that tests meet a second page."""
HOST = "/storage.googleapis.com"
"""In every path, as gcsfs deletes in batches only where it sees this name."""
STAMP = "2026-01-01T00:00:00.000Z"


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Bucket:
    """Objects by name, each with its generation; not for more than one request at a time."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.uploads: dict[str, tuple[str, str | None, bytearray]] = {}
        self.generation = 0

    def get(self, name: str) -> tuple[int, bytes]:
        if name not in self.objects:
            raise Refused(404, f"No such object: {BUCKET}/{name}")
        return self.objects[name]

    def facts(self, name: str) -> dict[str, str]:
        generation, data = self.get(name)
        facts = {"kind": "storage#object", "bucket": BUCKET, "name": name, "size": str(len(data))}
        facts |= {"generation": str(generation), "metageneration": "1"}
        return facts | {"timeCreated": STAMP, "updated": STAMP}

    def put(self, name: str, data: bytes, condition: str | None) -> dict[str, str]:
        there = self.objects.get(name, (0, b""))[0]
        if condition is not None and int(condition) != there:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
        self.generation += 1
        self.objects[name] = self.generation, data
        return self.facts(name)

    def list(self, query: dict[str, str]) -> dict[str, object]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        found: dict[str, bool] = {}
        for name in sorted(n for n in self.objects if n.startswith(prefix)):
            head, cut, _ = name[len(prefix) :].partition(delimiter or "\0")
            found[prefix + head + cut] = bool(cut)
        left = [name for name in found if name > query.get("pageToken", "")]
        page = left[: min(PAGE, int(query.get("maxResults", PAGE)))]
        answer: dict[str, object] = {"kind": "storage#objects"}
        answer["items"] = [self.facts(name) for name in page if not found[name]]
        answer["prefixes"] = [name for name in page if found[name]]
        return answer | ({"nextPageToken": page[-1]} if len(left) > len(page) else {})


class Handler(BaseHTTPRequestHandler):
    protocol_version, wbufsize = "HTTP/1.1", -1
    bucket: Bucket
    lock: threading.Lock

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path.removeprefix(HOST))
        query, path = dict(parse_qsl(url.query)), url.path
        try:
            with self.lock:
                self.route(path, query, body)
        except Refused as error:
            facts = {"code": error.status, "message": str(error)}
            self.send(json.dumps({"error": facts}).encode(), error.status)

    do_GET = do_POST = do_DELETE = answer

    def route(self, path: str, query: dict[str, str], body: bytes) -> None:
        if path == "/batch/storage/v1":
            return self.batch(body)
        match = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(/o)?(?:/([^/]+))?", path)
        if match is None:
            raise Refused(400, f"not known here: {self.command} {path}")
        where, bucket, _, name = (unquote(part or "") for part in match.groups())
        if bucket != BUCKET:
            raise Refused(404, "The specified bucket does not exist.")
        if where == "/upload":
            return self.upload(query, body)
        if where == "/download":
            return self.download(self.bucket.get(name)[1])
        if self.command == "DELETE":
            self.bucket.get(name)
            del self.bucket.objects[name]
            return self.send(b"", 204)
        facts = self.bucket.facts(name) if name else self.bucket.list(query)
        return self.send(json.dumps(facts if match[3] else {"name": BUCKET}).encode())

    def upload(self, query: dict[str, str], body: bytes) -> None:
        kind, condition = query.get("uploadType"), query.get("ifGenerationMatch")
        if "upload_id" in query:
            return self.piece(query["upload_id"], body)
        if kind == "resumable":
            number = uuid.uuid4().hex
            self.bucket.uploads[number] = json.loads(body)["name"], condition, bytearray()
            here = f"http://{self.headers['Host']}{self.path.partition('?')[0]}"
            return self.send(b"", Location=f"{here}?uploadType=resumable&upload_id={number}")
        boundary = self.headers["Content-Type"].partition("boundary=")[2].strip('"').encode()
        _, facts, rest = body.split(b"--" + boundary + b"\n", 2)
        data = rest.split(b"\n\n", 1)[1].removesuffix(b"\n--" + boundary + b"--")
        name = json.loads(facts.split(b"\n\n", 1)[1])["name"]
        return self.send(json.dumps(self.bucket.put(name, data, condition)).encode())

    def piece(self, number: str, body: bytes) -> None:
        name, condition, data = self.bucket.uploads[number]
        if self.command == "DELETE":
            del self.bucket.uploads[number]
            return self.send(b"", 499)
        data += body
        if self.headers["Content-Range"].endswith("/*"):
            return self.send(b"", 308, Range=f"bytes=0-{len(data) - 1}")
        if int(self.headers["Content-Range"].partition("/")[2]) != len(data):
            return self.send(b"", 308, Range=f"bytes=0-{len(data) - 1}")
        return self.send(json.dumps(self.bucket.put(name, bytes(data), condition)).encode())

    def download(self, data: bytes) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            return self.send(data)
        return self.send(data[int(match[1]) : int(match[2] or len(data)) + 1], 206)

    def batch(self, body: bytes) -> None:
        """Each part is answered on its own; the whole has status 200 whatever became of them."""
        parts = []
        for name in re.findall(rb"DELETE /storage/v1/b/[^/]+/o/(\S+) HTTP", body):
            gone = self.bucket.objects.pop(unquote(name.decode()), None)
            fault = {"error": {"code": 404, "message": f"No such object: {name.decode()}"}}
            answer = "204 No Content\r\n" if gone else f"404 Not Found\r\n\r\n{json.dumps(fault)}"
            parts.append(f"--batch\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {answer}\r\n")
        whole = ("".join(parts) + "--batch--").encode()
        self.send(whole, kind="multipart/mixed; boundary=batch")

    def send(
        self, body: bytes, status: int = 200, *, kind: str = "application/json", **headers: str
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A line for each request would drown the tests'."""


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


@contextmanager
def gcs_server() -> Iterator[str]:
    """The URL of an empty bucket; processes that start inside reach it, too."""
    facts = {"bucket": Bucket(), "lock": threading.Lock()}
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), facts))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}{HOST}")
        patch.setenv("FSSPEC_GS_TOKEN", "anon")  # for other processes; this one has read it
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        try:
            yield f"gs://{BUCKET}"
        finally:
            server.shutdown()
            server.server_close()
