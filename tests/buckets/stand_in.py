"""A stand-in for Google Cloud Storage on loopback: objects in memory, and preconditions that hold.

It speaks as much of the JSON API as gcsfs and tensorstore ask for: uploads of every kind, downloads
with ranges, listings, copies, deletions, alone and in batches. Generations count up over the whole
bucket.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = "bucket"


@dataclass(frozen=True)
class Stored:
    """An object: what it holds, and which writing of its name this is."""

    content: bytes
    generation: int
    updated: str


@dataclass
class Bucket:
    """The objects of the bucket, by name.

    Attributes:
        objects: by name.
        on_write: called with the name of an object before it is written; it may raise
            `ConnectionError` to refuse, or kill somebody.
    """

    objects: dict[str, Stored] = field(default_factory=dict)
    generation: int = 1_000
    on_write: Callable[[str], None] = lambda name: None
    uploads: dict[str, tuple[str, dict[str, str], bytes]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def names(self, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def put(self, name: str, content: bytes) -> Stored:
        self.on_write(name)
        with self.lock:
            self.generation += 1
            updated = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
            self.objects[name] = Stored(content, self.generation, updated)
            return self.objects[name]

    def allows(self, name: str, query: dict[str, str]) -> bool:
        """Whether the preconditions of a request hold; generation 0 stands for no object."""
        now = self.objects[name].generation if name in self.objects else 0
        wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
        if wanted is not None and int(wanted) != now:
            return False
        return unwanted is None or int(unwanted) != now

    def describe(self, name: str) -> dict[str, Any]:
        stored = self.objects[name]
        return {
            "kind": "storage#object",
            "bucket": BUCKET,
            "name": name,
            "generation": str(stored.generation),
            "metageneration": "1",
            "size": str(len(stored.content)),
            "md5Hash": base64.b64encode(hashlib.md5(stored.content).digest()).decode(),
            "timeCreated": stored.updated,
            "updated": stored.updated,
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
        }


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, why: str) -> None:
        self.answer(status, {"error": {"code": status, "message": why, "errors": []}})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def serve(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        path, content = url.path, self.body()
        try:
            with self.bucket.lock:
                self.route(path, query, content)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = serve

    def route(self, path: str, query: dict[str, str], content: bytes) -> None:
        if path.startswith("/batch/"):
            return self.batch(content)
        if path.startswith("/upload/"):
            return self.upload(query, content)
        found = re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?", path)
        if not found or found[1] != BUCKET:
            return self.refuse(404, f"no bucket at {path}")
        if path.endswith(f"/b/{BUCKET}"):
            return self.answer(200, {"kind": "storage#bucket", "name": BUCKET, "id": BUCKET})
        if not found[2]:
            return self.listing(query)
        copied = re.fullmatch(r"(.*)/(?:rewriteTo|copyTo)/b/[^/]+/o/(.*)", found[2])
        if copied:
            source, target = (urllib.parse.unquote(part) for part in copied.groups())
            return self.copy(source, target, query)
        return self.one(urllib.parse.unquote(found[2]), path, query)

    def one(self, name: str, path: str, query: dict[str, str]) -> None:
        bucket = self.bucket
        if name not in bucket.objects:
            return self.refuse(404, f"No such object: {BUCKET}/{name}")
        if not bucket.allows(name, query):
            return self.refuse(304 if "ifGenerationNotMatch" in query else 412, "precondition")
        if self.command == "DELETE":
            del bucket.objects[name]
            return self.answer(204)
        if query.get("alt") != "media":
            return self.answer(200, bucket.describe(name))
        stored = bucket.objects[name]
        headers = {"x_goog_generation": str(stored.generation), "Content_Type": "text/plain"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        size = len(stored.content)
        if not wanted or (self.headers["Range"] == "bytes=0-" and not size):
            return self.answer(200, stored.content, **headers)
        first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        last = min(size - 1, int(wanted[2])) if wanted[1] and wanted[2] else size - 1
        if first >= size:
            return self.answer(416, b"", Content_Range=f"bytes */{size}")
        headers["Content_Range"] = f"bytes {first}-{last}/{size}"
        self.answer(206, stored.content[first : last + 1], **headers)

    def listing(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], set()
        for name in self.bucket.names(prefix):
            if not query.get("startOffset", "") <= name:
                continue
            if "endOffset" in query and query["endOffset"] and name >= query["endOffset"]:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest[: rest.index(delimiter) + len(delimiter)])
            else:
                items.append(self.bucket.describe(name))
        # In pages, as the real one.
        entries = sorted([(item["name"], item) for item in items] + [(p, None) for p in prefixes])
        start = int(query.get("pageToken") or 0)
        end = start + int(query.get("maxResults") or 1000)
        found: dict[str, Any] = {"kind": "storage#objects"}
        found["items"] = [item for _, item in entries[start:end] if item]
        found["prefixes"] = [name for name, item in entries[start:end] if item is None]
        if end < len(entries):
            found["nextPageToken"] = str(end)
        self.answer(200, found)

    def copy(self, source: str, target: str, query: dict[str, str]) -> None:
        if source not in self.bucket.objects:
            return self.refuse(404, f"No such object: {BUCKET}/{source}")
        if not self.bucket.allows(target, query):
            return self.refuse(412, "precondition")
        content = self.bucket.objects[source].content
        self.bucket.put(target, content)
        size, described = str(len(content)), self.bucket.describe(target)
        self.answer(
            200,
            {
                "kind": "storage#rewriteResponse",
                "done": True,
                "objectSize": size,
                "totalBytesRewritten": size,
                "resource": described,
            },
        )

    def upload(self, query: dict[str, str], content: bytes) -> None:
        kind, bucket = query.get("uploadType"), self.bucket
        if "upload_id" in query:
            return self.resume(query["upload_id"], content)
        if kind == "resumable":
            name = query.get("name") or json.loads(content)["name"]
            bucket.generation += 1
            key = str(bucket.generation)
            bucket.uploads[key] = (name, query, b"")
            host = self.headers["Host"]
            where = f"http://{host}/upload/storage/v1/b/{BUCKET}/o?upload_id={key}"
            return self.answer(200, b"", Location=where)
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
            assert boundary
            mark = b"--" + boundary[1].strip("'").encode()
            _, meta, data, *_ = content.split(mark)
            described = json.loads(re.split(rb"\r?\n\r?\n", meta.lstrip(), maxsplit=1)[1])
            name = query.get("name") or described["name"]
            content = re.split(rb"\r?\n\r?\n", data, maxsplit=1)[1]
            content = content.removesuffix(b"\n").removesuffix(b"\r")
        else:
            name = query["name"]
        self.store(name, query, content)

    def resume(self, key: str, content: bytes) -> None:
        name, query, before = self.bucket.uploads[key]
        content = before + content
        total = self.headers.get("Content-Range", "bytes */*").rpartition("/")[2]
        if total == "*" or int(total) > len(content):
            self.bucket.uploads[key] = (name, query, content)
            return self.answer(308, b"", Range=f"bytes=0-{len(content) - 1}")
        del self.bucket.uploads[key]
        self.store(name, query, content)

    def store(self, name: str, query: dict[str, str], content: bytes) -> None:
        if not self.bucket.allows(name, query):
            return self.refuse(412, "precondition")
        self.bucket.put(name, content)
        self.answer(200, self.bucket.describe(name))

    def batch(self, content: bytes) -> None:
        names = re.findall(rb"DELETE\s+\S*?/o/(\S+)\s+HTTP", content)
        parts = []
        for name in (urllib.parse.unquote(found.decode()) for found in names):
            gone = self.bucket.objects.pop(name.partition("?")[0], None) is None
            status = "404 Not Found" if gone else "204 No Content"
            parts.append(
                f"--batch\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status}\r\n"
                "Content-Length: 0\r\n\r\n\r\n"
            )
        body = ("".join(parts) + "--batch--\r\n").encode()
        self.answer(200, body, Content_Type="multipart/mixed; boundary=batch")


class Server(ThreadingHTTPServer):
    """Serves each connection in a thread; a client that is killed is no error."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving() -> Iterator[tuple[str, Bucket]]:
    """Serve an empty bucket; gives the address for the drivers, and the bucket."""
    bucket = Bucket()
    handler = type("BucketHandler", (Handler,), {"bucket": bucket})
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
