import httpx
import pytest

from latentforge.core.settings import SettingsError
from latentforge.trainer.run.status import Status
from latentforge.trainer.run.status_server import StatusServer


def test_status_is_served_while_it_changes() -> None:
    status = Status("demo")
    server = StatusServer(status, "127.0.0.1", 0)
    try:
        base = f"http://127.0.0.1:{server.port}"
        assert httpx.get(f"{base}/health").json() == {"status": "ok"}
        probe = httpx.head(f"{base}/health")
        assert (probe.status_code, probe.content) == (200, b"")
        status.stage, status.step, status.losses = "student", 3, {"ce": 1.0}
        answer = httpx.get(f"{base}/status").json()
        assert (answer["stage"], answer["step"], answer["losses"]) == ("student", 3, {"ce": 1.0})
        assert (answer["done"], answer["error"]) == (False, None)
        with pytest.raises(SettingsError, match=f"--status-port {server.port} on 127.0.0.1 cannot be opened"):
            StatusServer(status, "127.0.0.1", server.port)
    finally:
        server.close()
