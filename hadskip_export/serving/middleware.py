"""What surrounds every request: how much of it is read, how long that may take, and what is counted of it."""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hadskip_export.serving.limits import Limits
from hadskip_export.serving.metrics import Metrics

MOST_HELD = 256_000_000  # bytes of all bodies that are not answered yet


def problem(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as text-embeddings-inference has it."""
    return JSONResponse({"error": message, "error_type": kind}, status, headers)


class LimitBody:
    """Answers 413 to a body that is too large, whether it says so beforehand or not, 408 to one that does not come in
    time, and 429 where the bodies of all requests together are too large."""

    def __init__(self, app: ASGIApp, limits: Limits):
        self._app, self._limits = app, limits
        self._too_large = f"a request of more than {limits.body:,} bytes"
        self._held = 0  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = Request(scope).headers.get("content-length", "")
        if said.isdecimal() and int(said) > self._limits.body:
            await problem(413, "Validation", self._too_large)(scope, receive, send)
            return
        read, more = 0, True
        deadline = asyncio.get_running_loop().time() + self._limits.timeout

        async def limited() -> Message:
            nonlocal read, more
            if not more:  # whoever asks now waits for the client to leave
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the request did not come within {self._limits.timeout:g} s") from None
            came, more = len(message.get("body", b"")), message.get("more_body", False)
            read += came
            self._held += came
            if read > self._limits.body:
                raise HTTPException(413, self._too_large)
            if self._held > max(MOST_HELD, self._limits.body):
                raise HTTPException(429, "too much is asked at once; try again", {"Retry-After": "1"})
            return message

        try:
            await self._app(scope, limited, send)
        finally:
            self._held -= read


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
