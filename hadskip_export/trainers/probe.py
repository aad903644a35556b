"""What a training will be like, before it is begun: how long its texts are, and how fast it is on this machine."""

import copy
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hadskip_export.data.metrics import AGREEMENT
from hadskip_export.data.problems import Problem
from hadskip_export.data.text import Text
from hadskip_export.modeling.checkpoint import load_classifier, read_config, save_tokenizer
from hadskip_export.modeling.encoder import EncoderConfig
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.families import Draw
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.support.files import scratch
from hadskip_export.trainers.batches import encode
from hadskip_export.trainers.methods.nested import Nested
from hadskip_export.trainers.objective import Objective
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.stages import distil
from hadskip_export.trainers.teacher import Teacher

BATCHES = 6


def tokens_of(folder: Path, texts: list[Text], max_length: int) -> np.ndarray:
    """How many tokens the texts have for a model, int [texts]."""
    return np.array([len(one) for one in _tokenizer(folder, read_config(folder), max_length).encode(texts)])


def _tokenizer(folder: Path, config: EncoderConfig, max_length: int) -> Tokenizer:
    with scratch() as temporary:
        file = temporary / "tokenizer.json"
        save_tokenizer(folder, file)
        return Tokenizer(file, max_length, config.vocab_size, config.type_vocab_size)


def seconds_per_text(folder: Path, texts: list[Text], recipe: Recipe, max_length: int, device: str) -> float:
    """Of an epoch in which a fine-tuned classifier's student learns nested routes of all sizes, by a few batches of
    texts drawn from these.

    Raises:
        HadskipError: see `load_classifier`.
    """
    full = load_classifier(folder).to(device)
    config, problem = full.config, Problem(full.config.problem_type, full.config.labels)
    drawn = np.random.default_rng(0).permutation(len(texts))[: BATCHES * recipe.batch_size]
    data = encode(_tokenizer(folder, config, max_length), [texts[row] for row in drawn], None)
    with torch.random.fork_rng():
        teacher = Teacher(full, data, device)
        answers = problem.decide(teacher.logits().cpu().numpy())
        data = replace(data, targets=answers.astype(np.float32) if answers.dtype == bool else answers)
        body = copy.deepcopy(full).requires_grad_(True)
        model = GatedClassifier(body, recipe.gate_width, recipe.gate_bias).to(device)
        session = Session(
            data=data, held_out=data.subset(np.arange(1)), recipe=recipe, seed=0, device=device,
            log=lambda **_: None, problem=problem, objective=Objective.of(problem.type, data.targets),
            metric=AGREEMENT,
        )  # fmt: skip
        method = Nested()
        leg = method.path(recipe, config.num_layers, config.num_layers)[0]
        family = method.family(recipe, leg, config.num_layers)
        started = time.monotonic()
        distil(model, teacher, Draw(family, 0), session, epochs=1, phase="how fast it trains here")
        return (time.monotonic() - started) / len(data)
