"""The loss terms against slow loops over inputs, layers, tokens and heads, written from the paper's equations."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hadskip_export.modeling.encoder import Output
from hadskip_export.modeling.gated import GatedOutput
from hadskip_export.trainers.batches import TrainingBatch
from hadskip_export.trainers.losses import (
    attention_loss,
    budget_penalty,
    distillation_loss,
    hidden_loss,
    stage3_loss,
    token_mse,
)
from hadskip_export.trainers.recipe import load_recipe
from hadskip_export.trainers.session import Session
from tests.trainers.datasets import OBJECTIVE, PROBLEM, random_dataset

LENGTHS = (5, 2, 8)
LAYERS, WIDTH, SIZE = 3, 8, 4
RAN = torch.tensor([[1, 0, 1], [0, 0, 1], [0, 0, 0]], dtype=torch.bool)


def mask(lengths=LENGTHS) -> Tensor:
    return (torch.arange(WIDTH)[None] < torch.tensor(lengths)[:, None]).long()


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def states(seed: int) -> list[Tensor]:
    return [random(len(LENGTHS), WIDTH, SIZE, seed=100 * seed + layer) for layer in range(LAYERS + 1)]


def maps(seed: int) -> list[Tensor]:
    return [random(len(LENGTHS), WIDTH, WIDTH, seed=100 * seed + 50 + layer).softmax(-1) for layer in range(LAYERS)]


def with_garbage_in_padding(tensors: list[Tensor]) -> list[Tensor]:
    """NaN outside real tokens (and outside real pairs of tokens, for maps)."""
    real = mask().bool()
    pairs = real[:, :, None] & real[:, None, :]
    return [
        tensor.masked_fill(~(pairs if tensor.shape[1:] == (WIDTH, WIDTH) else real[..., None]), math.nan)
        for tensor in tensors
    ]


def close(got: Tensor, wanted: float) -> None:
    assert got.item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def slow_mse(ours: Tensor, theirs: Tensor, length: int) -> float:
    """Of one input, float [s, H], over its real tokens."""
    return sum(
        (ours[t, h].item() - theirs[t, h].item()) ** 2 for t in range(length) for h in range(SIZE)
    ) / (length * SIZE)  # fmt: skip


# Equation 3


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=4, max_size=4), min_size=1, max_size=6), st.floats(0.1, 4)
)
def test_the_penalty_is_the_squared_excess_of_the_mean_over_the_batch(gates, budget):
    mean = sum(map(sum, gates)) / len(gates)
    tensor = torch.tensor(gates, dtype=torch.float64)
    close(budget_penalty(tensor, budget, "layers"), (mean - budget) ** 2)
    share = sum(map(sum, gates)) / (len(gates) * 4)
    close(budget_penalty(tensor, budget, "share"), (share - budget / 4) ** 2)


def test_single_inputs_may_use_more_or_fewer_layers():
    uneven = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])
    assert budget_penalty(uneven, 2.0, "layers") == 0
    assert budget_penalty(uneven[:1], 2.0, "layers") == 4


@pytest.mark.parametrize(("unit", "scale"), [("layers", 1), ("share", 16)])
def test_the_penaltys_gradient_pushes_every_gate_by_the_excess(unit, scale):
    gates = torch.ones(5, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(budget_penalty(gates, 2.5, unit), gates)
    torch.testing.assert_close(gradient, torch.full((5, 4), 2 * 1.5 / 5 / scale))


# Equations 6 and 8: means over inputs of a mean over each input's real tokens


def test_hidden_loss_is_the_mean_over_inputs_and_layers():
    ours, theirs = states(1), states(2)
    total = sum(
        slow_mse(ours[layer][row], theirs[layer][row], length)
        for layer in range(1, LAYERS + 1)
        for row, length in enumerate(LENGTHS)
    )
    close(hidden_loss(ours, theirs, mask()), total / (len(LENGTHS) * LAYERS))


def test_hidden_loss_is_the_mean_over_inputs_and_layers_where_all_are_equally_long():
    ours, theirs = states(1), states(2)
    total = sum(slow_mse(ours[layer][row], theirs[layer][row], 5) for layer in range(1, LAYERS + 1) for row in range(3))
    close(hidden_loss(ours, theirs, mask((5, 5, 5))), total / (3 * LAYERS))


def test_embedding_loss_is_the_mean_over_inputs():
    ours, theirs = states(1)[0], states(2)[0]
    total = sum(slow_mse(ours[row], theirs[row], length) for row, length in enumerate(LENGTHS))
    close(token_mse(ours, theirs, mask()), total / len(LENGTHS))


def test_hidden_loss_leaves_the_embeddings_to_equation_8():
    ours, theirs = states(1), states(2)
    before = hidden_loss(ours, theirs, mask())
    assert hidden_loss([ours[0] + 7, *ours[1:]], theirs, mask()) == before


# Equation 7


def test_attention_loss_counts_real_tokens_of_the_layers_that_ran():
    ours, theirs, total = maps(1), maps(2), 0.0
    for row, length in enumerate(LENGTHS):
        for layer in range(LAYERS):
            if RAN[row, layer]:
                squares = [
                    (ours[layer][row, i, j].item() - theirs[layer][row, i, j].item()) ** 2
                    for i in range(length)
                    for j in range(length)
                ]
                total += sum(squares) / length**2
    close(attention_loss(ours, theirs, RAN, mask()), total / (len(LENGTHS) * LAYERS))


def test_attention_of_layers_that_did_not_run_has_no_effect_and_no_gradient():
    ours, theirs = [m.requires_grad_() for m in maps(1)], maps(2)
    attention_loss(ours, theirs, RAN, mask()).backward()
    for layer, tensor in enumerate(ours):
        for row in range(len(LENGTHS)):
            assert bool(tensor.grad[row].any()) == bool(RAN[row, layer])


# Padding


def test_padding_has_no_effect_on_any_term():
    """NaN there must not even be multiplied by zero."""
    real = mask()
    assert hidden_loss(with_garbage_in_padding(states(1)), with_garbage_in_padding(states(2)), real).isfinite()
    assert hidden_loss(with_garbage_in_padding(states(1)), states(2), real) == hidden_loss(states(1), states(2), real)


def test_finite_garbage_in_padded_attention_has_no_effect():
    """Padded rows of a real map are finite, whatever they hold."""
    noisy = [m.nan_to_num(1e3) for m in with_garbage_in_padding(maps(1))]
    close(attention_loss(noisy, maps(2), RAN, mask()), attention_loss(maps(1), maps(2), RAN, mask()).item())


# The whole loss of stage III


def session(recipe: str, *settings: str) -> Session:
    data = random_dataset(3)
    return Session(
        data=data, held_out=data, recipe=load_recipe(recipe, settings), seed=0, device="cpu", log=print,
        problem=PROBLEM, objective=OBJECTIVE, metric="accuracy",
    )  # fmt: skip


def batch(labels: Tensor | None) -> TrainingBatch:
    """Labels and padding: of its texts and their places a loss asks nothing."""
    return TrainingBatch((mask(), mask(), mask()), labels, np.arange(3))


def outputs() -> tuple[GatedOutput, Output]:
    student = GatedOutput(random(3, 2, seed=3), states(1), maps(1), RAN.to(torch.float64), random(3, LAYERS, seed=4))
    return student, Output(random(3, 2, seed=5), states(2), maps(2))


def test_the_loss_is_the_weighted_sum_of_its_terms():
    settings = ["alpha1=2", "alpha2=3", "alpha3=5", "alpha4=7", "beta=11", "penalty_unit=share"]
    here = session("paper", *settings)
    (student, teacher), labels = outputs(), torch.tensor([0, 1, 1])
    loss, terms = stage3_loss(student, teacher, batch(labels), 1.5, here)
    task = -sum(student.logits[row].log_softmax(0)[label].item() for row, label in enumerate(labels.tolist())) / 3
    wanted = {
        "task": (1, task),
        "prediction": (2, OBJECTIVE.prediction_loss(student.logits, teacher.logits).item()),
        "hidden": (3, hidden_loss(states(1), states(2), mask()).item()),
        "attention": (5, attention_loss(maps(1), maps(2), RAN, mask()).item()),
        "embedding": (7, token_mse(states(1)[0], states(2)[0], mask()).item()),
        "budget": (11, ((1 - 1.5) / 3) ** 2),
    }
    assert terms.keys() == wanted.keys()
    for name, (_, value) in wanted.items():
        close(terms[name], value)
    close(loss, sum(weight * value for weight, value in wanted.values()))


def test_a_term_of_weight_zero_is_left_out_and_needs_no_states():
    here = session("paper", "alpha1=0", "alpha2=0", "alpha3=0", "alpha4=0")
    student, teacher = outputs()
    student.hidden_states, student.attention_maps = [], []
    _, terms = stage3_loss(student, teacher, batch(torch.tensor([0, 1, 1])), 1.5, here)
    assert terms.keys() == {"task", "budget"}


# Texts without labels


def test_without_labels_the_task_has_no_term_and_the_others_are_as_they_were():
    here, (student, teacher) = session("paper", "alpha1=2", "alpha2=3", "alpha3=5", "alpha4=7"), outputs()
    labelled, with_task = distillation_loss(student, teacher, RAN, batch(torch.tensor([0, 1, 1])), here)
    unlabelled, without = distillation_loss(student, teacher, RAN, batch(None), here)
    assert without.keys() == {"prediction", "hidden", "attention", "embedding"}
    assert {"task": with_task["task"]} | without == with_task
    close(unlabelled, labelled.item() - with_task["task"].item())


def test_a_text_that_was_altered_has_the_teachers_answer_alone():
    here, (student, teacher) = session("paper", "alpha1=2", "alpha2=3", "alpha3=5", "alpha4=7"), outputs()
    labels, altered = torch.tensor([0, 1, 1]), torch.tensor([False, True, False])
    _, plain = distillation_loss(student, teacher, RAN, batch(labels), here)
    _, terms = distillation_loss(student, teacher, RAN, replace(batch(labels), altered=altered), here)
    wanted = torch.nn.functional.cross_entropy(student.logits[[0, 2]], labels[[0, 2]], reduction="sum") / 3
    close(terms["task"], wanted.item())
    assert terms | {"task": None} == plain | {"task": None}


def test_what_unlabelled_text_teaches_reaches_the_student():
    student, teacher = Output(random(3, 2, seed=3).requires_grad_()), Output(random(3, 2, seed=5))
    loss, _ = distillation_loss(student, teacher, RAN, batch(None), session("adaptive"))
    (gradient,) = torch.autograd.grad(loss, student.logits)
    torch.testing.assert_close(gradient, (student.logits.softmax(-1) - teacher.logits.softmax(-1)) / 3)
