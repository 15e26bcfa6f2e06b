"""Runs a command with a teacher-gateway: the one that answers already, or one started for this command.

One that was started here ends with its command, also where another command found it meanwhile: `make gateway` starts
one that stays.

Usage: python -m tools.gateway -- trainer train student ...
"""

import os
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import Field

from latentforge.core.command_line import DONE, errors_reported
from latentforge.core.proxies import is_loopback
from latentforge.core.settings import load_settings
from latentforge.core.sockets import bare_host, bracketed
from latentforge.teacher_client.access import GatewayAccess
from latentforge.teacher_client.channel import open_channel
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sync_client import SyncTeacherClient
from tools.processes import ChildError, Children, StoppedError, stop_on_signals

# The gateway itself waits for a vLLM that is still starting; a gateway that died is noticed at once.
START_SECONDS = 700.0
_LOGS = Path("runs") / "logs"


class GatewayChoice(GatewayAccess):
    """Which gateway is meant, and with which teacher where that was said."""

    gateway_target: str | None = Field(None, pattern=r"^\S+:\d+$", description="host:port; unset is GATEWAY_PORT here.")
    gateway_port: int = Field(50051, ge=1, le=65535, description="Port of a gateway on this machine.")
    teacher_backend: str | None = Field(None, description="Refuse a running gateway that has another one.")

    @property
    def target(self) -> str:
        return bracketed(self.gateway_target or f"localhost:{self.gateway_port}")


def gateway_answers(target: str, tls_ca: Path | None = None) -> bool:
    """Whether a gateway at host:port says that it serves; no key is needed for that.

    Raises:
        SettingsError: the file of ``tls_ca`` is invalid.
    """
    with open_channel(target, tls_ca=tls_ca) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def gateway_command() -> list[str]:
    """The gateway's command line; its port comes from GATEWAY_PORT."""
    return [str(Path(sys.executable).with_name("teacher-gateway")), "serve"]


def backend_of(choice: GatewayChoice) -> str:
    """The backend of the gateway that answers."""
    with SyncTeacherClient(
        choice.target, timeout=10, api_key=choice.gateway_api_key, tls_ca=choice.gateway_tls_ca
    ) as client:
        return client.teacher().backend


def run_with_gateway(command: list[str]) -> None:
    """Runs ``command`` on our terminal.

    Raises:
        ChildError: it failed, the gateway did not start, or the one that answers has another teacher.
        TeacherError: the gateway that answers does not say what it has.
        TimeoutError: the gateway did not come up.
    """
    settings = load_settings(GatewayChoice)
    target = settings.target
    host, _, port = target.rpartition(":")
    environment = {
        "GATEWAY_TARGET": target,
        # By default it listens at 127.0.0.1 alone, where nobody finds it who asks for an IPv6 address.
        **({"GATEWAY_HOST": bare_host(host)} if host.startswith("[") else {}),
        "GATEWAY_PORT": port,
        # It shares the cores with the command: one thread, unless told otherwise, that does not spin while it waits.
        "TORCH_THREADS": os.environ.get("TORCH_THREADS", "1"),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    with stop_on_signals(), Children(_LOGS, env=environment) as children:
        if gateway_answers(target, settings.gateway_tls_ca):
            backend = backend_of(settings)
            if settings.teacher_backend not in (None, backend):
                raise ChildError(
                    f"TEACHER_BACKEND={settings.teacher_backend}, but the gateway that answers at {target} has "
                    f"{backend}; stop it, or choose another GATEWAY_PORT"
                )
        elif not is_loopback(target):
            raise ChildError(
                f"no teacher-gateway answers at GATEWAY_TARGET={target}; start it there, "
                "or unset GATEWAY_TARGET to have one started here"
            )
        else:
            sys.stderr.write(
                f"starting a teacher-gateway at {target} for this command; `make gateway` starts one that stays\n"
            )
            children.start("teacher-gateway", gateway_command())
            children.wait_until(
                lambda: gateway_answers(target, settings.gateway_tls_ca),
                "starting the teacher-gateway",
                seconds=START_SECONDS,
            )
        children.finish(children.start(Path(command[0]).name, command, visible=True))


def main(arguments: list[str]) -> int:
    try:
        with errors_reported(ChildError, TeacherError, TimeoutError):
            run_with_gateway(arguments[1:] if arguments[:1] == ["--"] else arguments)
    except StoppedError as stopped:
        return stopped.exit_code
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
