"""The teacher's answers against the model itself, how often it is run, and that no gradient comes near it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hadskip_export.modeling.encoder import Classifier
from hadskip_export.trainers.batches import Dataset, count_batches, ordered_batches, shuffled_batches
from hadskip_export.trainers.teacher import Teacher
from tests.modeling.random_models import random_classifier
from tests.trainers.datasets import alone, random_dataset

DATA = random_dataset(150)  # more than two batches


@torch.no_grad()
def one_by_one(model: Classifier, data: Dataset, rows) -> torch.Tensor:
    return torch.cat([model(*alone(data, row)).logits for row in rows])


class Counted:
    """How many batches a model was run on."""

    def __init__(self, model: Classifier):
        self.batches = 0
        model.head.register_forward_hook(self._count)

    def _count(self, *_) -> None:
        self.batches += 1


def test_its_logits_are_the_models_for_every_row_without_dropout():
    model = random_classifier(dropout=0.5, attention_dropout=0.5)
    logits = Teacher(model.train(), DATA).logits()
    assert logits.shape == (150, 3) and logits.dtype == torch.float32
    torch.testing.assert_close(logits, one_by_one(model, DATA, range(150)), atol=1e-5, rtol=0)


def test_its_logits_are_computed_once_whoever_asks():
    model = random_classifier()
    counted, teacher = Counted(model), Teacher(model, DATA)
    assert counted.batches == 0  # only when asked for
    first = teacher.logits()
    for batch in shuffled_batches(DATA, 16, 0):
        teacher(batch, keep_states=False)
    assert torch.equal(first, teacher.logits()) and counted.batches == count_batches(DATA, 64) == 3


def test_its_kept_logits_are_fp32_though_a_step_in_bf16_asks_first():
    model = random_classifier()
    with torch.autocast("cpu", torch.bfloat16):
        logits = Teacher(model, DATA).logits()
    assert torch.equal(logits, Teacher(model, DATA).logits())


@pytest.mark.parametrize("keep_states", [False, True])
def test_a_batch_gets_the_answers_for_its_own_rows(keep_states):
    model = random_classifier(dropout=0.5)
    teacher = Teacher(model, DATA)
    for batch in shuffled_batches(DATA, 16, 3):
        logits = teacher(batch, keep_states).logits
        torch.testing.assert_close(logits, one_by_one(model, DATA, batch.rows), atol=1e-5, rtol=0)


@pytest.mark.parametrize("keep_states", [False, True])
def test_a_text_that_was_altered_is_answered_as_it_is_now(keep_states):
    model = random_classifier(dropout=0.5)
    teacher = Teacher(model, DATA)
    kept = teacher.logits().clone()
    batch = next(iter(ordered_batches(DATA.subset(np.arange(8)), 8)))
    other, altered = next(iter(ordered_batches(random_dataset(8, 5), 8))), torch.arange(8) % 3 == 1
    ids = torch.where(altered[:, None], other.inputs[0][:, :1], batch.inputs[0])
    mixed = replace(batch, inputs=(ids, *batch.inputs[1:]), altered=altered)
    logits = teacher(mixed, keep_states).logits
    torch.testing.assert_close(logits, model(*mixed.inputs).logits, atol=1e-5, rtol=0)
    assert (logits - kept[torch.from_numpy(batch.rows)])[altered].abs().max() > 1e-3
    assert torch.equal(teacher.logits(), kept)  # those of the dataset's texts stay


def test_states_and_maps_are_there_where_they_are_asked_for_and_anew_each_time():
    model = random_classifier()
    counted, teacher = Counted(model), Teacher(model, DATA)
    batch = next(iter(ordered_batches(DATA, 16)))
    output, wanted = teacher(batch, keep_states=True), model(*batch.inputs, keep_states=True)
    assert len(output.hidden_states) == 5 and len(output.attention_maps) == 4
    for ours, theirs in zip(
        output.hidden_states + output.attention_maps, wanted.hidden_states + wanted.attention_maps, strict=True
    ):
        assert torch.equal(ours, theirs)
    before = counted.batches
    teacher(batch, keep_states=True)
    assert counted.batches == before + 1
    without = teacher(batch, keep_states=False)
    assert not without.hidden_states and not without.attention_maps


def test_it_has_no_gradient_and_stays_in_eval_mode():
    model = random_classifier()
    teacher = Teacher(model.train(), DATA)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    batch = next(iter(ordered_batches(DATA, 16)))
    for keep_states in (False, True):
        output = teacher(batch, keep_states)
        assert not any(t.requires_grad for t in (output.logits, *output.hidden_states, *output.attention_maps))


def test_each_has_its_own_data():
    model = random_classifier()
    rows = np.arange(149, -1, -7)
    torch.testing.assert_close(
        Teacher(model, DATA.subset(rows)).logits(), Teacher(model, DATA).logits()[torch.from_numpy(rows)], atol=1e-5,
        rtol=0,
    )  # fmt: skip
