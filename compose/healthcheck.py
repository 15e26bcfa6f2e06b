"""Container health checks. Usage: healthcheck.py grpc PORT | http PORT PATH; exit code 0 for healthy."""

import sys
import urllib.request


def grpc_serving(port: int) -> bool:
    import grpc  # the other images need not have it
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def http_ok(port: int, path: str) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return bool(answer.status == 200)


if __name__ == "__main__":
    kind, port = sys.argv[1], int(sys.argv[2])
    try:
        healthy = grpc_serving(port) if kind == "grpc" else http_ok(port, sys.argv[3])
    except Exception as error:
        sys.exit(f"unhealthy: {error}")
    sys.exit(None if healthy else "unhealthy")
