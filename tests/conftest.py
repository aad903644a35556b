"""Small models made on the spot. Everything here is real, only small: a BERT of three layers, a WordPiece tokenizer, a
run trained by `train`, bundles written by `build`."""

import csv
import os
import shutil
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest

from hadskip_export.commands.doctor import features

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # or a test of a hub that cannot be reached waits until that is sure

BF16 = bool((features() or {}).get("BF16"))
needs_bf16 = pytest.mark.skipif(not BF16, reason="this chip computes no bf16")

WORDS = [
    "good",
    "great",
    "fine",
    "superb",
    "lovely",
    "bad",
    "awful",
    "poor",
    "dull",
    "dreadful",
    "film",
    "plot",
    "actor",
    "scene",
    "story",
    "the",
    "a",
    "is",
    "was",
    "not",
    "very",
    "and",
    "of",
    "to",
    "it",
    "this",
    "that",
    "but",
    "with",
    "no",
    "some",
    "any",
    "one",
    "two",
    "three",
]
GOOD, BAD = WORDS[:5], WORDS[5:10]


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """(text, label): a random sentence around one telling word."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = ("negative", "positive")[int(random.integers(2))]
        words = list(random.choice(WORDS[10:], size=int(random.integers(1, 12))))
        words.insert(int(random.integers(len(words) + 1)), str(random.choice(GOOD if label == "positive" else BAD)))
        rows.append((" ".join(words), label))
    return rows


def write_csv(file: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("text", "label")) -> Path:
    with file.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([header, *rows])
    return file


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models this small gain nothing from a second thread, and on a busy machine lose minutes to waiting for it."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face BERT encoder, random weights, 3 layers of 32, as `transformers` saves it."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def csv_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(train.csv, eval.csv) of 240 and 80 labelled sentences."""
    folder = tmp_path_factory.mktemp("data")
    return write_csv(folder / "train.csv", sentences(240, 0)), write_csv(folder / "eval.csv", sentences(80, 1))


QUICK = ("stage1_lr=3e-3", "stage1_epochs=4", "body_lr=5e-4", "gate_width=8", "batch_size=16")


@pytest.fixture(scope="session")
def run_folder(model_folder: Path, csv_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the paper's recipe: three stages, budgets 3, 2 and 1.5."""
    from hadskip_export import train

    out = tmp_path_factory.mktemp("run") / "run"
    train(
        model=str(model_folder), budget=1.5, out=out, train=str(csv_files[0]), eval=str(csv_files[1]),
        recipe="paper", settings=QUICK, max_length=32,
    )  # fmt: skip
    return out


@pytest.fixture(scope="session")
def shared_run(model_folder: Path, csv_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one body for all budgets: 3, 2 and 1.5, the default."""
    from hadskip_export import train

    out = tmp_path_factory.mktemp("shared") / "run"
    train(
        model=str(model_folder), budget=1.5, out=out, train=str(csv_files[0]), eval=str(csv_files[1]),
        recipe="adaptive", settings=(*QUICK, "fit_steps=300", "fit_lr=1e-2"), max_length=32,
    )  # fmt: skip
    return out


def make_source(
    model_folder: Path,
    folder: Path,
    *,
    layers: int = 4,
    labels: tuple[str, ...] = ("no", "yes"),
    problem_type: str = "single_label_classification",
    seed: int = 0,
    fixed_route: tuple[int, ...] | None = None,
):
    """A gated classifier of random weights whose gates differ from input to input, or one of a fixed route, as
    `write_bundle` takes it."""
    import torch
    from torch import nn

    from hadskip_export.data.metrics import USUAL
    from hadskip_export.exporters.write import Source
    from hadskip_export.modeling.checkpoint import read_config, save_tokenizer
    from hadskip_export.modeling.encoder import Classifier
    from hadskip_export.modeling.gated import GatedClassifier
    from hadskip_export.routing.points import Point

    config = read_config(model_folder, labels, problem_type)
    by_layer = {name: getattr(config, name) for name in ("windows", "rotary_bases")}
    cycled = {name: values and tuple(islice(cycle(values), layers)) for name, values in by_layer.items()}
    config = replace(config, num_layers=layers, **cycled)
    torch.manual_seed(seed)
    full = Classifier(config).init_weights(std=0.1).eval()
    student = Classifier(config).init_weights(std=0.1)
    model = GatedClassifier(student, gate_width=8, fixed_route=fixed_route).eval()
    for gate in model.gates if fixed_route is None else ():
        nn.init.normal_(gate.logits.weight, std=1.5)
    tokenizer = folder / "tokenizer.json"
    save_tokenizer(model_folder, tokenizer)
    texts = [text for text, _ in sentences(40, 2)]
    thresholds = (0.0,) * layers if fixed_route is None else ()
    point = Point(2.0, thresholds, "evaluation", 2.0)
    return Source(model, full, tokenizer, 32, (point,), point.budget, "test", USUAL[problem_type], texts)


@pytest.fixture(scope="session")
def source(model_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """See `make_source`."""
    return make_source(model_folder, tmp_path_factory.mktemp("source"))


def write_cut(source, folder: Path, cut: str, engine: str = "ort", precision: str = "fp32") -> Path:
    """A bundle of one engine, which passed its check."""
    from hadskip_export.exporters.plan import EnginePlan
    from hadskip_export.exporters.write import write_bundle

    report = write_bundle(source, folder / "bundle", EnginePlan(engine, precision, cut))
    assert report is not None and report.parity == "passed"
    return folder / "bundle"


@pytest.fixture(scope="session")
def bundle(source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose layers and gates are called one by one. Shared: copy it before damaging it."""
    return write_cut(source, tmp_path_factory.mktemp("bundle"), "gates")


@pytest.fixture(scope="session")
def openvino_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with OpenVINO in fp32, as one engine, beside ONNX Runtime."""
    from hadskip_export import build

    out = shutil.copytree(bundle, tmp_path_factory.mktemp("openvino") / "bundle")
    assert build(out, engine="openvino").parity == "passed"
    return out


@pytest.fixture(scope="session")
def layers_bundle(source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, each layer with the gates after it."""
    return write_cut(source, tmp_path_factory.mktemp("layers"), "layers")


@pytest.fixture(scope="session")
def whole_bundle(source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as one engine."""
    return write_cut(source, tmp_path_factory.mktemp("whole"), "whole")


STATIC_ROUTE = (1, 3)  # of four layers: neither the first ones nor the last ones


@pytest.fixture(scope="session")
def static_source(model_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A model without gates, see `make_source`."""
    return make_source(model_folder, tmp_path_factory.mktemp("static_source"), fixed_route=STATIC_ROUTE)


@pytest.fixture(scope="session")
def static_bundle(static_source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one fixed route."""
    return write_cut(static_source, tmp_path_factory.mktemp("static"), "gates")
