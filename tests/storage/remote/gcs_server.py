"""A small HTTP server with the part of Google Cloud Storage's JSON API that gcsfs calls.

It was written from Google's documentation and gcsfs's source. It proves that our requests are
answered as we read them there: conditions, pages, ranges, uploads in pieces, deletions in batches.
It proves nothing of Google's own consistency, limits of rate, permissions or authentication.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

import fsspec
import pytest
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

BUCKET, PAGE = "mgdm-tests", 7
"""Google gives up to 1000 names at once; so few that tests meet a second page."""
HOST = "/storage.googleapis.com"
"""In every path, as gcsfs deletes in batches only where it sees this name."""
STAMP = "2026-01-01T00:00:00.000Z"
PLAIN, UPLOAD, DOWNLOAD = (
    f"{HOST}{way}/storage/v1/b/{BUCKET}" for way in ("", "/upload", "/download")
)


class Refused(Exception):
    """(status, message)"""


class Bucket:
    """Objects by name, each with its generation; for one request at a time."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.uploads: list[tuple[str, str | None, bytearray]] = []
        self.generation, self.lock = 0, threading.Lock()

    @Request.application
    def __call__(self, request: Request) -> Response:
        try:
            with self.lock:
                return self.route(request)
        except Refused as error:
            status, message = error.args
            return answer({"error": {"code": status, "message": message}}, status)

    def route(self, request: Request) -> Response:
        path, query = request.path, request.args
        if path == f"{HOST}/batch/storage/v1":
            return self.batch(request.get_data())
        if path == f"{UPLOAD}/o":
            return self.piece(request) if "upload_id" in query else self.upload(request)
        if path.startswith(f"{DOWNLOAD}/o/"):
            data = self.get(path.removeprefix(f"{DOWNLOAD}/o/"))[1]
            part = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
            return Response(data[int(part[1]) : int(part[2]) + 1], 206) if part else Response(data)
        if path == PLAIN:
            return answer({"kind": "storage#bucket", "name": BUCKET})
        if path == f"{PLAIN}/o":
            return answer(self.list(query))
        if not path.startswith(f"{PLAIN}/o/"):
            raise Refused(404, "The specified bucket does not exist.")
        facts = self.facts(path.removeprefix(f"{PLAIN}/o/"))
        if request.method == "DELETE":
            del self.objects[facts["name"]]
            return Response(status=204)
        return answer(facts)

    def get(self, name: str) -> tuple[int, bytes]:
        if name not in self.objects:
            raise Refused(404, f"No such object: {BUCKET}/{name}")
        return self.objects[name]

    def facts(self, name: str) -> dict[str, str]:
        generation, data = self.get(name)
        facts = {"kind": "storage#object", "bucket": BUCKET, "name": name, "size": str(len(data))}
        return facts | {"generation": str(generation), "timeCreated": STAMP, "updated": STAMP}

    def put(self, name: str, data: bytes, condition: str | None) -> Response:
        there = self.objects.get(name, (0, b""))[0]
        if condition is not None and int(condition) != there:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
        self.generation += 1
        self.objects[name] = self.generation, data
        return answer(self.facts(name))

    def list(self, query: dict[str, str]) -> dict[str, object]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter") or "\0"
        found: dict[str, bool] = {}
        for name in sorted(n for n in self.objects if n.startswith(prefix)):
            head, cut, _ = name[len(prefix) :].partition(delimiter)
            found[prefix + head + cut] = bool(cut)
        left = [name for name in found if name > query.get("pageToken", "")]
        page = left[: min(PAGE, int(query.get("maxResults", PAGE)))]
        listing: dict[str, object] = {"kind": "storage#objects"}
        listing["items"] = [self.facts(name) for name in page if not found[name]]
        listing["prefixes"] = [name for name in page if found[name]]
        return listing | ({"nextPageToken": page[-1]} if len(left) > len(page) else {})

    def upload(self, request: Request) -> Response:
        body, condition = request.get_data(), request.args.get("ifGenerationMatch")
        if request.args["uploadType"] == "resumable":
            self.uploads.append((json.loads(body)["name"], condition, bytearray()))
            where = f"{request.base_url}?upload_id={len(self.uploads) - 1}"
            return Response(headers={"Location": where})
        boundary = b"--" + request.mimetype_params["boundary"].encode()
        _, facts, rest = body.split(boundary + b"\n", 2)
        data = rest.split(b"\n\n", 1)[1].removesuffix(b"\n" + boundary + b"--")
        return self.put(json.loads(facts.split(b"\n\n", 1)[1])["name"], data, condition)

    def piece(self, request: Request) -> Response:
        name, condition, data = self.uploads[int(request.args["upload_id"])]
        data += request.get_data()
        if request.headers["Content-Range"].rpartition("/")[2] == str(len(data)):
            return self.put(name, bytes(data), condition)
        return Response(status=308, headers={"Range": f"bytes=0-{len(data) - 1}"})

    def batch(self, body: bytes) -> Response:
        """Each part is answered on its own; the whole has status 200 whatever became of them."""
        whole = ""
        for name in re.findall(r"DELETE /storage/v1/b/[^/]+/o/(\S+) HTTP", body.decode()):
            gone = self.objects.pop(unquote(name), None)
            fault = {"error": {"code": 404, "message": f"No such object: {name}"}}
            status = "204 No Content\r\n" if gone else f"404 Not Found\r\n\r\n{json.dumps(fault)}"
            whole += f"--batch\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status}\r\n"
        return Response(whole + "--batch--", content_type="multipart/mixed; boundary=batch")


def answer(facts: dict[str, object], status: int = 200) -> Response:
    return Response(json.dumps(facts), status, content_type="application/json")


@contextmanager
def gcs_server() -> Iterator[str]:
    """The URL of an empty bucket; processes that start inside reach it, too."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = make_server("127.0.0.1", 0, Bucket(), threaded=True)
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
