"""GET /docs: the API to try out, without a request to anywhere else."""

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

_ASSETS = Path(fastapi_offline.__file__).parent / "static"
_AT = "/docs/assets"
# The page's own script is inline; whatever else it may hold, a browser asks nobody but this server.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'"
)


def install_docs(app: FastAPI) -> None:
    """Serves Swagger UI and its files."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url=str(app.openapi_url),
            title=app.title,
            swagger_js_url=f"{_AT}/swagger-ui-bundle.js",
            swagger_css_url=f"{_AT}/swagger-ui.css",
            swagger_favicon_url=f"{_AT}/favicon.png",
            # By default a service elsewhere is asked whether the description is valid.
            swagger_ui_parameters={"validatorUrl": None},
        )
        page.headers["content-security-policy"] = _POLICY
        return page

    app.mount(_AT, StaticFiles(directory=_ASSETS), name="docs-assets")
