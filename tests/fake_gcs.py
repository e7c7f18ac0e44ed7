"""Google Cloud Storage on this machine, as far as TensorFlow's client for gs:// uses it.

An HTTPS proxy that answers for Google's hosts itself, with a certificate that the client is told to
trust: so that it is TensorFlow's own client, and its errors, that are tested.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOSTS = ("www.googleapis.com", "storage.googleapis.com")


class FakeGcs:
    """A store that has any bucket.

    Attributes:
        objects: Their content, by "bucket/name".
        environ: What the client has to find in its environment.
        refuse: The HTTP status of all answers, if it isn't 0.
    """

    def __init__(self, directory: Path) -> None:
        self.objects: dict[str, bytes] = {}
        self.refuse = 0
        certificate, key = directory / "certificate.pem", directory / "key.pem"
        names = ",".join(f"DNS:{host}" for host in HOSTS)
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-subj", "/CN=fake", "-addext", f"subjectAltName={names}"),
                *("-keyout", str(key), "-out", str(certificate)),
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        store = self

        class Handler(_Handler):
            gcs, tls = store, context

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.environ = {
            "https_proxy": f"http://127.0.0.1:{self._server.server_address[1]}",
            "CURL_CA_BUNDLE": str(certificate),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "GCS_STAT_CACHE_MAX_AGE": "0",  # Tests change objects behind its back.
            "no_proxy": "",
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=60)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gcs: FakeGcs
    tls: ssl.SSLContext

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        self.connection = self.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.close_connection = False

    def finish(self) -> None:
        super().finish()
        self.connection.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _answer_json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def _serve(self) -> None:
        body = self._body()
        url = urllib.parse.urlsplit(self.path)
        query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query).items()}
        parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
        objects = self.gcs.objects
        if self.gcs.refuse:
            self._answer(self.gcs.refuse, b"{}")
        elif self.headers["Host"].startswith("storage."):
            self._read("/".join(parts))
        elif query.get("uploadType") == "media":
            objects[f"{parts[4]}/{query['name']}"] = body
            self._answer_json({"name": query["name"]})
        elif parts[0] == "upload" and self.command == "POST":
            name = urllib.parse.quote(f"{parts[4]}/{query['name']}", safe="")
            self._answer(200, Location=f"https://www.googleapis.com/session/{name}")
        elif parts[0] == "session":
            objects[parts[1]] = body
            self._answer_json({"name": parts[1]})
        elif "rewriteTo" in parts:
            objects[f"{parts[8]}/{parts[10]}"] = objects[f"{parts[3]}/{parts[5]}"]
            self._answer_json({"done": True})
        elif len(parts) == 6:
            self._object(f"{parts[3]}/{parts[5]}")
        elif len(parts) == 5:
            self._list(parts[3], query)
        else:
            self._answer_json({"name": parts[3], "location": "EU"})

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def _object(self, name: str) -> None:
        if name not in self.gcs.objects:
            self._answer(404, b"{}")
        elif self.command == "DELETE":
            del self.gcs.objects[name]
            self._answer(204)
        else:
            size = len(self.gcs.objects[name])
            self._answer_json(
                {"size": str(size), "generation": "1", "updated": "2026-01-01T00:00:00.000Z"}
            )

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for full in sorted(self.gcs.objects):
            home, _, name = full.partition("/")
            if home != bucket or not name.startswith(prefix):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append({"name": name, "size": "1"})
        self._answer_json({"items": items, "prefixes": sorted(prefixes)})

    def _read(self, name: str) -> None:
        content = self.gcs.objects.get(name)
        if content is None:
            self._answer(404)
            return
        start, end = self.headers["Range"].removeprefix("bytes=").split("-")
        part = content[int(start) : int(end) + 1]
        if not part:
            self._answer(416)
        else:
            self._answer(206, part, Content_Range=f"bytes {start}-{end}/{len(content)}")
