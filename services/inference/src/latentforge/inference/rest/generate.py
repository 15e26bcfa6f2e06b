"""POST /generate: one prompt, one text."""

from fastapi import APIRouter, Request, Response

from latentforge.core.http.disconnects import while_connected
from latentforge.inference.rest.bodies import BoundedRoute
from latentforge.inference.rest.completion import complete
from latentforge.inference.rest.openapi import GENERATE_ANSWERS
from latentforge.inference.rest.schemas.generate import GenerateRequest, GenerateResponse
from latentforge.inference.rest.services import Services


def generate_router(services: Services) -> APIRouter:
    router = APIRouter(route_class=BoundedRoute)

    @router.post("/generate", response_model=GenerateResponse, responses=GENERATE_ANSWERS)
    async def generate(body: GenerateRequest, request: Request) -> Response:
        """Continues a prompt with the checkpoint that is served when the request arrives."""
        snapshot = await services.snapshot()
        answer = await while_connected(request.receive, complete(services.engine, snapshot, body))
        return Response(answer.model_dump_json(), media_type="application/json")

    return router
