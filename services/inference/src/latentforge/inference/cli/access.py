"""How the command line shows a server that it may ask."""

from latentforge.core.command_line import errors_reported
from latentforge.core.settings import load_settings
from latentforge.inference.settings import InferenceSettings


def key_headers() -> dict[str, str]:
    """The header with the first key of INFERENCE_API_KEY; none where it is unset."""
    with errors_reported():
        keys = load_settings(InferenceSettings).api_keys
    return {"authorization": f"Bearer {keys[0]}"} if keys else {}
