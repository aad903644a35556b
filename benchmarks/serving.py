"""A service under a load that does not wait for it, by locust, with and without fewer layers under load.

    python -m venv /tmp/locust && /tmp/locust/bin/pip install locust
    python benchmarks/serving.py BUNDLE --texts dev.csv --locust /tmp/locust/bin/locust --budget 6 --least-budget 2

Generator and service share the machine. First what the service can at most: users that ask again as soon as they are
answered. Then 0.5, 1, 2 and 3 times that, from so many users that one who waits holds up no others.
"""

import csv
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from hadskip_export.data.columns import read_texts

FACTORS = (0.5, 1.0, 2.0, 3.0)
PATIENCE = 10  # seconds between a user's requests, on average
BUSY = 32  # users that find out what it can
PROGRAM = Path(sys.executable).parent / "hadskip-export"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--texts", type=click.Path(path_type=Path, exists=True), required=True, help="A file of texts.")
@click.option("--locust", required=True, help="The program.")
@click.option("--budget", type=float, required=True)
@click.option("--least-budget", type=float, required=True)
@click.option("--engine", help="One of the bundle's.")
@click.option("--queue", default=100, show_default=True, help="Inputs that may wait.")
@click.option("--seconds", default=20, show_default=True, help="Of each load.")
@click.option("--port", default=8321, show_default=True)
def main(
    bundle: Path, texts: Path, locust: str, budget: float, least_budget: float, engine: str | None, queue: int,
    seconds: int, port: int,
) -> None:  # fmt: skip
    """Print a line for each load."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "texts.json"
        file.write_text(json.dumps([row.text for row in read_texts(texts)]))
        plain = [PROGRAM, "serve", bundle, "--port", str(port), "--budget", str(budget), "--queue", str(queue)]
        plain += ["--engine", engine] if engine else []
        capacity = 0.0
        click.echo("| budget | load | asked a second | answered | refused | other | p50 | p99 | layers |")
        click.echo("|---|---|---|---|---|---|---|---|---|")
        for name, options in (
            (f"{budget:g}", []),
            (f"{budget:g} to {least_budget:g}", ["--least-budget", str(least_budget)]),
        ):
            with subprocess.Popen([*plain, *options]) as service:
                try:
                    _wait(port)
                    if not capacity:
                        _load(locust, port, file, users=BUSY, rate=0, seconds=5)
                        found = _load(locust, port, file, users=BUSY, rate=0, seconds=seconds)
                        capacity = found["200"]["count"] / seconds
                        _row(name, "as much as it can", capacity, found, 0, 0)
                    for factor in FACTORS:
                        before = _layers(port)
                        asked = factor * capacity
                        users = round(PATIENCE * asked)
                        found = _load(locust, port, file, users=users, rate=1 / PATIENCE, seconds=seconds)
                        inputs, layers = (now - then for now, then in zip(_layers(port), before, strict=True))
                        _row(name, f"{factor:g}", asked, found, inputs, layers)
                        time.sleep(5)
                finally:
                    service.terminate()


def _wait(port: int) -> None:
    for _ in range(600):
        try:
            _get(port, "/health")
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the service does not come up")


def _get(port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    return connection.getresponse().read().decode()


def _layers(port: int) -> tuple[float, float]:
    """Inputs so far, and layers they ran."""
    text = _get(port, "/metrics")
    count, total = (re.search(rf"^hadskip_layers_run_{name} (.*)$", text, re.M) for name in ("count", "sum"))
    return float(count[1]) if count else 0.0, float(total[1]) if total else 0.0


def _load(locust: str, port: int, texts: Path, *, users: int, rate: float, seconds: int) -> dict[str, dict]:
    """Status -> how many, and their p50 and p99 in ms."""
    out = texts.with_name("out")
    command = [
        locust, "--headless", "--only-summary", "-f", Path(__file__).with_name("serving_load.py"), "-u", str(users),
        "-r", str(users), "-t", f"{seconds}s", "--host", f"http://127.0.0.1:{port}", "--csv", out, "-L", "ERROR",
    ]  # fmt: skip
    environment = os.environ | {"TEXTS": str(texts), "RATE": str(rate)}
    subprocess.run(command, env=environment, capture_output=True, check=True)
    with Path(f"{out}_stats.csv").open() as file:
        return {
            row["Name"]: {"count": int(row["Request Count"]), "p50": row["50%"], "p99": row["99%"]}
            for row in csv.DictReader(file)
            if row["Name"] != "Aggregated"
        }


def _row(name: str, load: str, asked: float, found: dict[str, dict], inputs: float, layers: float) -> None:
    good = found.get("200", {"count": 0, "p50": "", "p99": ""})
    refused = found.get("429", {"count": 0})["count"]
    other = sum(each["count"] for status, each in found.items() if status not in ("200", "429"))
    ran = f"{layers / inputs:.2f}" if inputs else ""
    click.echo(
        f"| {name} | {load} | {asked:.0f} | {good['count']} | {refused} | {other} | {good['p50']} ms | {good['p99']} ms"
        f" | {ran} |"
    )


if __name__ == "__main__":
    main()
