"""What `import hadskip_export.runtime` costs beside importing numpy, tokenizers and onnxruntime, in interleaved turns.

python benchmarks/import_time.py [--turns 15]
"""

import subprocess
import sys

import click
import numpy as np

BASELINE = "import numpy, tokenizers, onnxruntime"
OURS = "import hadskip_export.runtime, onnxruntime"
TIMED = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"


def seconds(statement: str) -> float:
    command = [sys.executable, "-c", TIMED.format(statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@click.command()
@click.option("--turns", default=15, show_default=True)
def main(turns: int) -> None:
    seconds(BASELINE), seconds(OURS)  # once, so that both find their files cached
    pairs = np.array([(seconds(BASELINE), seconds(OURS)) for _ in range(turns)])
    baseline, ours = np.median(pairs, axis=0) * 1e3
    ratio = np.median(pairs[:, 1] / pairs[:, 0])
    click.echo(f"{BASELINE}: {baseline:.0f} ms; {OURS}: {ours:.0f} ms; ratio {ratio:.2f} (median of {turns} pairs)")


if __name__ == "__main__":
    main()
