"""Whole runs of the tiny model: the command of the `run_folder` fixture, with changes."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from hadskip_export import train
from hadskip_export.modeling.checkpoint import load_classifier, save_classifier
from hadskip_export.trainers.methods import HADSKIP
from hadskip_export.trainers.settings import those_read
from tests.conftest import QUICK

QUICKEST = (*QUICK, "stage1_epochs=1", "last_epochs=1", "shared_epochs=1")


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def assert_bit_equal(one: torch.nn.Module, other: torch.nn.Module) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def repeat(model_folder: Path, csv_files: tuple[Path, Path], out: Path, **changes) -> dict[str, Any]:
    """Of the settings those that are read."""
    arguments = {
        "model": str(model_folder), "budget": 1.5, "out": out, "train": str(csv_files[0]), "eval": str(csv_files[1]),
        "recipe": "paper", "settings": QUICK, "max_length": 32,
    } | changes  # fmt: skip
    method, fine_tuned = arguments.get("method", HADSKIP), arguments.get("fine_tuned", False)
    settings = those_read(arguments["settings"], method, arguments["recipe"], fine_tuned=fine_tuned)
    return train(**(arguments | {"settings": settings}))


def as_model(folder: Path, run_folder: Path, labels: tuple[str, ...]) -> Path:
    """The fine-tuned classifier of the run as a model folder with a tokenizer."""
    model = load_classifier(run_folder / "stage1")
    model.config = type(model.config)(**{**model.config.__dict__, "labels": labels})
    save_classifier(model, folder)
    shutil.copy(run_folder / "tokenizer" / "tokenizer.json", folder)
    return folder
