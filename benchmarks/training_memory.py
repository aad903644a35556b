"""Memory of a training beside that of plain fine-tuning with `transformers`' Trainer, at the same batch.

Made-up texts, all of 128 tokens; batches of 32; each in a process of its own, whose largest resident set counts.

    pip install accelerate                                # which the Trainer wants
    python benchmarks/training_memory.py MODEL_FOLDER     # any model of BERT's kind with a tokenizer
    python benchmarks/training_memory.py MODEL_FOLDER --set precision=bf16
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np

ROWS, WORDS = 320, 200


def texts(rows: int, seed: int) -> list[tuple[str, str]]:
    random = np.random.default_rng(seed)
    words = ["film", "plot", "the", "a", "was", "dull", "bright", "of", "never", "again"]
    return [(" ".join(random.choice(words, WORDS)), str(row % 2)) for row in range(rows)]


def trainer(model: str, folder: Path) -> None:
    """Plain fine-tuning, an epoch."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [tokenizer(text, truncation=True, max_length=128) | {"labels": int(label)} for text, label in texts(ROWS, 0)]
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=32, num_train_epochs=1, save_strategy="no", report_to=[], use_cpu=True
    )
    plain = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2, dtype=torch.float32)
    Trainer(plain, arguments, train_dataset=rows, processing_class=tokenizer).train()


def ours(model: str, folder: Path, recipe: str, settings: tuple[str, ...]) -> None:
    """All stages, an epoch of each, and the figures of every budget."""
    from hadskip_export import train
    from hadskip_export.trainers.methods import HADSKIP
    from hadskip_export.trainers.settings import those_read

    for name, rows, seed in (("train", ROWS, 0), ("eval", 64, 1)):
        lines = [json.dumps({"text": text, "label": label}) for text, label in texts(rows, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    quick = ("stage1_epochs=1", "shared_epochs=1", "epochs=1", "last_epochs=1", "fit_steps=20")
    train(
        model=model, train=str(folder / "train.jsonl"), eval=str(folder / "eval.jsonl"), budget=0.5, recipe=recipe,
        out=folder / "run", max_length=128,
        settings=(*those_read(quick, HADSKIP, recipe, fine_tuned=False), *settings),
    )  # fmt: skip


@click.command()
@click.argument("model")
@click.option("--set", "settings", multiple=True, help="Of the recipe, key=value.")
@click.option("--measure", type=click.Choice(["Trainer", "adaptive", "paper"]), hidden=True)
def main(model: str, settings: tuple[str, ...], measure: str | None) -> None:
    """Print each one's largest resident set."""
    if measure:
        with tempfile.TemporaryDirectory() as temporary:
            if measure == "Trainer":
                trainer(model, Path(temporary))
            else:
                ours(model, Path(temporary), measure, settings)
        click.echo(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return
    largest: dict[str, int] = {}
    for name in ("Trainer", "adaptive", "paper"):
        command = [sys.executable, __file__, model, "--measure", name, *(p for s in settings for p in ("--set", s))]
        largest[name] = int(subprocess.check_output(command, text=True).split()[-1])
        click.echo(f"{name:<10} {largest[name]:>6} MB  {largest[name] / largest['Trainer']:5.2f} of Trainer's")


if __name__ == "__main__":
    main()
