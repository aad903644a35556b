"""The process that serves: where it listens, and how it ends."""

import asyncio
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from hadskip_export.serving.service import Service
from hadskip_export.support.errors import DataError

LINGER = 1.0  # seconds at least between being told to end and hearing no more: what was sent before then has come
BACKLOG = 2048  # connections that wait to be taken


def listen(host: str, port: int) -> socket.socket:
    """
    Raises:
        DataError: nobody can listen there, or everybody could hear it and nobody said so.
    """
    if not host.strip():
        raise DataError("--host: is empty; name an address, as 127.0.0.1, or 0.0.0.0 for all of this machine's")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise DataError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}); choose another"
        ) from error


def run(app: FastAPI, service: Service, place: socket.socket) -> None:
    """Until SIGTERM or Ctrl-C; then what was asked is answered. A second one ends it at once."""
    patience = int(service.limits.timeout) + 1
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=patience,
        http="h11",  # of the two it is the one that bounds headers
    )  # fmt: skip
    _Server(config, service).run(sockets=[place])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service
        self._lingering: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """A hang-up is no other than SIGTERM, unless whoever started this process has it ignored."""
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self.handle_exit)
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In place of uvicorn's, which raises the signal once more when all is done: to end as told is no error."""
        if self._service.ending:
            self.should_exit = self.force_exit = True
            return
        self._service.ending = True
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(lambda: setattr(self, "_lingering", loop.create_task(self._linger())))

    async def _linger(self) -> None:
        """Hears a while longer, and until nobody waits: uvicorn drops connections of which it has read nothing yet."""
        loop = asyncio.get_running_loop()
        last = loop.time() + self._service.limits.timeout
        await asyncio.sleep(LINGER)
        while not self._service.is_empty and loop.time() < last:
            await asyncio.sleep(LINGER / 10)
        self.should_exit = True
