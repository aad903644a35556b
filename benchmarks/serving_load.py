"""What locust does: users ask for texts at random moments, few times a second each, so that one who waits for an
answer holds up hardly any other: requests come whether or not those before are answered."""

import json
import os
import random
import time
from pathlib import Path

from locust import FastHttpUser, task

TEXTS = json.loads(Path(os.environ["TEXTS"]).read_text())
RATE = float(os.environ["RATE"])  # requests a second of one user, on average; 0 for as many as are answered


def pause(_: object = None) -> float:
    """Until the next request."""
    return random.expovariate(RATE) if RATE else 0.0


class User(FastHttpUser):
    """Requests are counted by the status they were answered with."""

    wait_time = pause

    def on_start(self) -> None:
        time.sleep(pause())

    @task
    def ask(self) -> None:
        with self.client.post("/predict", json={"inputs": random.choice(TEXTS)}, catch_response=True) as response:
            response.request_meta["name"] = str(response.status_code)
            response.success()
