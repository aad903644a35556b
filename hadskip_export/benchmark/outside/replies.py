"""A worker's side of a measurement: a JSON line on standard input for each request, a line on standard output for each
reply. The standard library alone, for other environments run this, too.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def reply_to_requests(load: Callable[..., tuple[Any, dict[str, Any]]], known: type[Exception] | None = None) -> None:
    """Answers until nobody asks any more. Two requests are the same for all: `cpu`, the processor time used so far by
    all threads, in seconds, and `memory`, the most that this process has had, in megabytes.

    Args:
        load: what the request `load` calls, first of all: the worker, whose methods the other requests are, and the
            reply.
        known: errors that say by themselves what is wrong.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing a library prints may mix with the replies
    worker: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("request")
        try:
            if name == "load":
                worker, reply = load(**request)
            elif name == "cpu":
                reply = {"seconds": time.process_time()}
            elif name == "memory":
                reply = {"mb": peak_memory() / 1e6}
            else:
                reply = getattr(worker, name)(**request)
        except Exception as error:  # else the parent would only know that this process died
            says_it = known is not None and isinstance(error, known)
            first = str(error).strip().partition("\n")[0]
            what = f"the benchmark's worker failed ({type(error).__name__}: {first})"
            reply = {"error": str(error) if says_it else what, "kind": type(error).__name__ if says_it else ""}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def peak_memory() -> int:
    """Bytes. On Linux not by `getrusage`, whose figure begins with that of the process it was forked from."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])
    except (OSError, StopIteration):
        import resource  # which Windows has not

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
