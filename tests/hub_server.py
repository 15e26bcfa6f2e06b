"""A local server that speaks as much of the Hugging Face hub's HTTP API as downloading and uploading a model takes."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Models in memory.

    Attributes:
        models: files by name, by the model's id.
        requested: paths that were asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict[str, bytes]] = {}
        self.requested: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, model: str) -> str:
        """A model's commit: 40 hex digits that its content determines."""
        digest = hashlib.sha1(usedforsecurity=False)
        for name, content in sorted(self.models[model].items()):
            digest.update(name.encode() + b"\0" + content)
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = urlsplit(self.path).path
        self.server.requested.append(path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            model = "/".join(filter(None, [asked.get("organization") or "somebody", asked["name"]]))
            self.server.models.setdefault(model, {})
            self._send_json({"url": f"{self.server.url}/{model}"})
        elif "/preupload/" in path:
            files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
            self._send_json({"files": [f | {"shouldIgnore": False, "oid": None} for f in files]})
        elif "/commit/" in path:
            model = "/".join(path.split("/")[3:5])
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    self.server.models[model][value["path"]] = base64.b64decode(value["content"])
            commit = self.server.commit(model)
            self._send_json({"commitUrl": f"{self.server.url}/{model}/commit/{commit}", "commitOid": commit})
        elif path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        else:
            self._send(404)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requested.append(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in self.server.models:
            model = "/".join(parts[2:4])
            files = self.server.models[model]
            if parts[4:5] == ["tree"]:
                self._send_json([{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in files.items()])
                return
            siblings = [{"rfilename": name} for name in files]
            self._send_json({"id": model, "sha": self.server.commit(model), "siblings": siblings, "private": False})
        elif parts[2:3] == ["resolve"] and "/".join(parts[4:]) in self.server.models.get("/".join(parts[:2]), {}):
            model = "/".join(parts[:2])
            content = self.server.models[model]["/".join(parts[4:])]
            headers = {"etag": f'"{_oid(content)}"', "x-repo-commit": self.server.commit(model)}
            self._send(200, content, headers)
        else:
            self._send(404, headers={"x-error-code": "RepoNotFound" if "api" in parts else "EntryNotFound"})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"content-type": "application/json"})

    def _send(self, status: int, content: bytes = b"", headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that runs in a thread."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
