"""The HTTP side: routes, limits and errors. Who answers is a `ChatBackend`, found by the path and the key of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from parl.gateway.chat import ApiError, ChatRequest, Reply, chunks, completion, parse_request


class ChatBackend(Protocol):
    """Who answers requests."""

    @property
    def models(self) -> Sequence[str]:
        """Names for `GET /v1/models`."""
        ...

    async def chat(self, request: ChatRequest) -> Reply:
        """Sample one turn. Raises ApiError."""
        ...


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one server takes on."""

    body_bytes: int = 8_000_000
    concurrent: int = 64
    """Requests that run at once; a further one is answered with 429, upon which clients wait and ask again."""
    deadline_s: float = 600.0


Find = Callable[[Mapping[str, str], str], ChatBackend]
"""(parameters of the path, bearer key) -> who answers. Raises ApiError."""


def make_app(find: Find, limits: ServerLimits, names: Sequence[str], prefix: str = "") -> Starlette:
    """Serve `prefix`/v1 under the host names `names`.

    The body must be declared as JSON: a page in a browser, which may not do that unasked, cannot spend our time.
    """
    running = 0

    async def models(request: Request) -> Response:
        speaker = find(request.path_params, _bearer(request))
        cards = [
            {"id": name, "object": "model", "created": 0, "owned_by": "parl"}
            for name in speaker.models
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def chat(request: Request) -> Response:
        nonlocal running
        speaker = find(request.path_params, _bearer(request))
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise ApiError(
                415, "invalid_content_type", "Send the body as `Content-Type: application/json`."
            )
        if running >= limits.concurrent:
            raise ApiError(
                429, "too_many_requests", f"{running} requests are running; ask again later."
            )
        running += 1
        try:
            async with asyncio.timeout(limits.deadline_s):
                asked = parse_request(await _body(request, limits.body_bytes))
                reply = await speaker.chat(asked)
        except TimeoutError:
            raise ApiError(
                504, "deadline", f"There was no answer within {limits.deadline_s:g} s."
            ) from None
        finally:
            running -= 1
        if asked.stream:
            return StreamingResponse(chunks(asked, reply), media_type="text/event-stream")
        return JSONResponse(completion(asked, reply))

    routes = [
        Route(f"{prefix}/v1/models", models),
        Route(f"{prefix}/v1/chat/completions", chat, methods=["POST"]),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=list(names))
    handlers = {ApiError: _told, HTTPException: _no_route}
    return Starlette(routes=routes, middleware=[hosts], exception_handlers=handlers)  # type: ignore[arg-type]


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise ApiError(413, "body_too_large", f"The body is larger than {most:,} bytes.")
    return bytes(body)


def _bearer(request: Request) -> str:
    return request.headers.get("authorization", "").removeprefix("Bearer ")


async def _told(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status)


async def _no_route(request: Request, error: HTTPException) -> Response:
    told = ApiError(
        error.status_code, "not_found", f"{request.method} {request.url.path}: {error.detail}."
    )
    return JSONResponse(told.body(), error.status_code)
