"""What a step of stage III costs beside a plain distillation step: interleaved epochs over the same few sentences.

    python benchmarks/training_step.py                                 # one thread; --threads 2 for two
    python benchmarks/training_step.py --device cuda --model bert-base # random weights of that size

The plain step runs the teacher forward and the student forward and backward, every layer, with the loss of predictions.
Wanted: stage III at most 1.35 times that. A step of fine-tuning, without a teacher, stands beside them.
"""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import click
import numpy as np
import torch

from hadskip_export.commands.demo import find_model
from hadskip_export.commands.estimate import SIZES
from hadskip_export.data.problems import SINGLE, Problem
from hadskip_export.modeling.checkpoint import load_classifier
from hadskip_export.modeling.encoder import Classifier, Output
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.families import Draw, nested
from hadskip_export.runtime.tokenization import Encoded
from hadskip_export.trainers.batches import Dataset, TrainingBatch
from hadskip_export.trainers.objective import Objective
from hadskip_export.trainers.recipe import load_recipe
from hadskip_export.trainers.schedule import Leg
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.stages import distil, fine_tune, train_jointly
from hadskip_export.trainers.teacher import Teacher

BUDGET, BATCHES = 3, 10


class ForgetfulTeacher(Teacher):
    """A teacher that keeps nothing, as in a plain distillation step."""

    def __call__(self, batch: TrainingBatch, keep_states: bool) -> Output:
        with torch.no_grad():
            return self.model(*batch.inputs, keep_states=keep_states)


@click.command()
@click.option("--threads", default=1, show_default=True)
@click.option("--tokens", default=24, show_default=True, help="Tokens of the longest sentence.")
@click.option("--model", type=click.Choice(sorted(SIZES)), help="Random weights; the demo's model if left out.")
@click.option("--precision", default="fp32", show_default=True, help="The recipe's: fp32 or bf16.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=7, show_default=True, help="The first is not counted.")
def main(threads: int, tokens: int, model: str | None, precision: str, device: str, rounds: int) -> None:
    """Time a step of stage III beside a plain distillation step."""
    torch.set_num_threads(threads)
    if model is None:
        classifier = load_classifier(find_model(), ("0", "1")).to(device)
    else:
        classifier = Classifier(SIZES[model]).init_weights().to(device)
    layers = classifier.config.num_layers
    paper, adaptive = (replace(load_recipe(name), precision=precision) for name in ("paper", "adaptive"))
    random = np.random.default_rng(0)
    ids = [random.integers(1000, 20000, size=random.integers(4, tokens)) for _ in range(BATCHES * paper.batch_size)]
    encoded = [Encoded(row, np.zeros_like(row), False) for row in ids]
    data = Dataset(encoded, random.integers(2, size=len(ids)), np.zeros(len(ids), np.int64))
    predictions = replace(paper, alpha2=0.0, alpha3=0.0, alpha4=0.0)
    plain = Draw([tuple(range(1, layers + 1))], 0)
    family = Draw(nested(range(2, layers + 1), layers), 0)

    held_out = Dataset(encoded[:1], np.zeros(1, np.int64), np.zeros(1, np.int64))

    def session(recipe) -> Session:
        return Session(
            data=data, held_out=held_out, recipe=recipe, seed=0, device=device, log=lambda **_: None, metric="accuracy",
            problem=Problem(SINGLE, classifier.config.labels), objective=Objective(SINGLE),
        )  # fmt: skip

    def student() -> GatedClassifier:
        return GatedClassifier(copy.deepcopy(classifier), 64, 1.0).to(device)

    keeps, forgets = (kind(copy.deepcopy(classifier), data, device) for kind in (Teacher, ForgetfulTeacher))
    keeps.logits()
    first, second, third, fourth = (student() for _ in range(4))
    fifth = copy.deepcopy(classifier)
    once, held = replace(paper, stage1_epochs=1), Leg(BUDGET, BUDGET, 1)
    systems: dict[str, Callable[[], object]] = {
        "plain": lambda: distil(first, forgets, plain, session(predictions), epochs=1, phase="plain"),
        "paper": lambda: train_jointly(second, keeps, held, session(paper)),
        "paper, predictions only": lambda: train_jointly(third, keeps, held, session(predictions)),
        "adaptive": lambda: distil(fourth, keeps, family, session(adaptive), epochs=1, phase="adaptive"),
        "fine-tuning": lambda: fine_tune(fifth, session(once)),
    }
    spent: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, epoch in systems.items():
            started = time.perf_counter()
            epoch()
            if device == "cuda":
                torch.cuda.synchronize()
            spent[name].append((time.perf_counter() - started) / BATCHES)
    for name, seconds in spent.items():
        ratios = [own / plain for own, plain in zip(seconds[1:], spent["plain"][1:], strict=True)]
        step, ratio = 1000 * statistics.median(seconds[1:]), statistics.median(ratios)
        click.echo(f"{name:<24} {step:7.1f} ms a step, {ratio:.2f} of plain ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
