"""What surrounds every request: how much of it is read, how long that may take, and what is counted of it."""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hadskip_export.serving.limits import Limits
from hadskip_export.serving.metrics import Metrics


def problem(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as text-embeddings-inference has it."""
    return JSONResponse({"error": message, "error_type": kind}, status, headers)


class LimitBody:
    """Answers 413 to a body that is too large, whether it says so beforehand or not, and 408 to one that does not
    come."""

    def __init__(self, app: ASGIApp, limits: Limits):
        self._app, self._limits = app, limits
        self._too_large = f"a request of more than {limits.body:,} bytes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = Request(scope).headers.get("content-length", "")
        if said.isdecimal() and int(said) > self._limits.body:
            await problem(413, "Validation", self._too_large)(scope, receive, send)
            return
        read, more = 0, True

        async def limited() -> Message:
            nonlocal read, more
            if not more:  # whoever asks now waits for the client to leave
                return await receive()
            try:
                async with asyncio.timeout(self._limits.timeout):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the request did not come within {self._limits.timeout:g} s") from None
            read += len(message.get("body", b""))
            more = message.get("more_body", False)
            if read > self._limits.body:
                raise HTTPException(413, self._too_large)
            return message

        await self._app(scope, limited, send)


class Count:
    """Tells `Metrics` of every request: its route, what it was answered, how long that took."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # as many names as there are routes, whatever is asked
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)
