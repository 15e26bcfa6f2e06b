"""What stands between the network and the API, in its order."""

from fastapi import FastAPI, Response
from fastapi.middleware.cors import CORSMiddleware

from latentforge.core.http.bodies import BodyGuard, BodyRules
from latentforge.core.metrics import CONTENT_TYPE
from latentforge.core.request_id import REQUEST_ID
from latentforge.core.tracing import Tracing
from latentforge.inference.edge.access import AccessGate
from latentforge.inference.edge.bodies import BodyLimits
from latentforge.inference.edge.context import RequestContext
from latentforge.inference.edge.drain import DrainGate, ending
from latentforge.inference.edge.head import HeadAsGet
from latentforge.inference.operation.drain import Drain
from latentforge.inference.operation.metrics import InferenceMetrics
from latentforge.inference.rest.errors import RestError
from latentforge.inference.settings import InferenceSettings


def install(
    app: FastAPI,
    settings: InferenceSettings,
    limits: BodyLimits,
    drain: Drain,
    metrics: InferenceMetrics,
    tracing: Tracing | None,
) -> None:
    """Puts the edge around an application, and GET /metrics into it."""
    # The last one added sees a request first.
    app.add_middleware(HeadAsGet)
    app.add_middleware(DrainGate, drain=drain)
    app.add_middleware(AccessGate, keys=settings.api_keys, origins=settings.origins)
    rules = BodyRules(limits.of, limits.seconds, "INFERENCE_BODY_SECONDS", RestError, ending)
    app.add_middleware(BodyGuard, rules=rules, shutdown=drain)
    # Closed: a browser is told of no origin that may read the answers.
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID, "retry-after"],
        )
    app.add_middleware(RequestContext, metrics=metrics, tracing=tracing)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def show_metrics() -> Response:
        """Prometheus's figures."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)
