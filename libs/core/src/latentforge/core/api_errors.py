"""The body of an HTTP answer that is an error, as OpenAI's clients read it."""

from typing import Any


def error_body(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}`` of an answer with this status.

    Args:
        code: names the cause in lower_snake_case, for programs.
        param: names the field of the request that is to blame.
    """
    kind = "invalid_request_error" if 400 <= status < 500 and status != 429 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
