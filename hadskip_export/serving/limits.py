"""How much a service takes on at a time, and what it says to more."""

import math
from dataclasses import asdict, dataclass

from hadskip_export.support.errors import DataError, HadskipError


@dataclass(frozen=True)
class Limits:
    """
    Args:
        inputs: of one request.
        queue: inputs of all requests that are not answered yet.
        batch_tokens: computed together; a request of more is a batch of its own.
        body: bytes of a request.
        timeout: seconds until a request is given up.

    Raises:
        DataError: one that is no number above 0.
    """

    inputs: int = 128
    queue: int = 1024
    batch_tokens: int = 16384
    body: int = 4_000_000
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise DataError(f"--{name.replace('_', '-')} {value:g}: expected a number above 0")


class RequestError(HadskipError):
    """What a request is answered instead of a prediction.

    Args:
        status: of HTTP.
        kind: as text-embeddings-inference calls it.
        retry_after: seconds after which it may be tried again.
    """

    def __init__(self, status: int, kind: str, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.kind, self.retry_after = status, kind, retry_after
