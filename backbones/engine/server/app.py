"""The routes."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from nlrl.backbones.engine.server import errors
from nlrl.backbones.engine.server.errors import ApiError
from nlrl.backbones.engine.server.guard import Guard
from nlrl.backbones.engine.server.metrics import CONTENT_TYPE, ServerMetrics
from nlrl.backbones.engine.server.service import Service, json_response
from nlrl.backbones.engine.server.surface import ServedEngine
from nlrl.backbones.engine.server.wire import ChatBody, CompletionBody

CHAT, COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"
HEALTH, METRICS = "/health", "/metrics"
MAX_REQUEST_BYTES = 8 << 20


def create_app(
    engine: ServedEngine, *, api_key: str = "", max_request_bytes: int = MAX_REQUEST_BYTES, local: bool = False
) -> FastAPI:
    """An OpenAI-compatible server around an engine, which stays the caller's to close.

    Args:
        engine: answers.
        api_key: what clients must send as `Authorization: Bearer ...`; empty: no key is asked for.
        max_request_bytes: larger bodies get 413.
        local: refuse requests that come by another name than a loopback address, or from another place's web page.
    """
    app = FastAPI(title="nlrl serve", docs_url=None, redoc_url=None, openapi_url=None)
    metrics, service = ServerMetrics(engine), Service(engine)
    routes = frozenset({CHAT, COMPLETIONS, MODELS, HEALTH, METRICS})
    options = {"api_key": api_key, "max_bytes": max_request_bytes, "metrics": metrics, "routes": routes}
    app.add_middleware(Guard, **options, local=local)
    errors.install(app)

    @app.post(CHAT)
    async def chat(body: ChatBody, request: Request) -> Response:
        return await service.chat(body, request)

    @app.post(COMPLETIONS)
    async def completions(body: CompletionBody, request: Request) -> Response:
        return await service.completions(body, request)

    @app.get(MODELS)
    async def models() -> Response:
        return json_response({"object": "list", "data": service.cards()})

    @app.get(MODELS + "/{name:path}")
    async def model(name: str) -> Response:
        return json_response(service.card(name))

    @app.get(HEALTH)
    async def health() -> Response:
        if service.failure:
            raise ApiError(503, service.failure)
        return json_response({"status": "ok"})

    @app.get(METRICS)
    async def figures() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return app
