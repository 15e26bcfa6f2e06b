import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tools.demo.watch import InferenceWatch, WatchError


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(b"{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(b'{"checkpoint": "demo/step-00000001", "text": ""}')

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_the_demo_asks_its_own_inference_past_every_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        watch = InferenceWatch(f"http://127.0.0.1:{server.server_address[1]}", poll_seconds=0.0, seed=0)
        try:
            assert watch.is_up()
            assert watch.is_ready()
            assert watch.poll()
        finally:
            server.shutdown()
    assert watch.seen == ["demo/step-00000001"]
    with pytest.raises(WatchError, match="did not answer"):
        watch.generate("x")
