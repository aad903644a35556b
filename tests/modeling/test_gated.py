"""The gated pass against a plain loop `h = f(h) g + h (1 - g)`, one input at a time and with the whole graph."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hadskip_export.modeling.encoder import Classifier, attention_bias
from hadskip_export.modeling.gated import Gate, GatedClassifier, squash
from hadskip_export.modeling.reinmax import ESTIMATORS, reinmax, sample, straight_through
from hadskip_export.routing.routes import Route, as_route
from tests.modeling.random_models import CONFIG, random_batch, random_classifier, random_fixed, random_gated
from tests.trainers.oracle import above

LENGTHS = (3, 9, 24, 5, 1, 14)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
# Layer 3 runs for nobody, layer 2 for everybody; the last input skips all layers but that.
ROUTES = torch.tensor(
    [[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 1], [0, 1, 0, 1], [1, 1, 0, 0], [0, 1, 0, 0]], dtype=torch.float32
)


def forced(routes: Tensor, estimator=reinmax, seen: list[Tensor] | None = None):
    """The estimator, for these decisions instead of drawn ones, for one pass; what it gives is added to `seen`."""
    columns = iter(routes.T)

    def estimate(margin: Tensor, drawn: Tensor) -> Tensor:
        gate = estimator(margin, next(columns))
        if seen is not None:
            seen.append(gate)
        return gate

    return estimate


def slow_forward(model: GatedClassifier, batch: tuple[Tensor, ...], routes: Tensor, estimator) -> dict[str, Tensor]:
    """Every input alone and without its padding; `f(h)` is computed for every layer, with a gradient."""
    logits, gates, margins, states, maps = [], [], [], [], []
    for row, length in enumerate(batch[1].sum(dim=1).tolist()):
        ids, mask, types = (tensor[row : row + 1, :length] for tensor in batch)
        hidden = model.classifier.embeddings(ids, types)
        of_row = {"gates": [], "margins": [], "states": [hidden[0]], "maps": []}
        for index, (layer, gate) in enumerate(zip(model.classifier.layers, model.gates, strict=True)):
            two = gate.logits(
                torch.tanh(gate.hidden(torch.nn.functional.layer_norm(hidden.mean(dim=1), (CONFIG.hidden_size,))))
            )
            margin = two[:, 0] - two[:, 1]
            g = estimator(margin, routes[row, index : index + 1])
            branch, attention = layer(hidden, attention_bias(mask), None)
            hidden = branch * g + hidden * (1 - g)
            of_row["gates"].append(g[0])
            of_row["margins"].append(margin[0])
            of_row["states"].append(hidden[0])
            of_row["maps"].append(attention[0].mean(dim=0))
        logits.append(model.classifier.head(hidden)[0])
        gates.append(torch.stack(of_row["gates"]))
        margins.append(torch.stack(of_row["margins"]))
        states.append(of_row["states"])
        maps.append(of_row["maps"])
    return {
        "logits": torch.stack(logits), "gates": torch.stack(gates), "margins": torch.stack(margins), "states": states,
        "maps": maps,
    }  # fmt: skip


def loss(logits: Tensor, gates: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, LABELS) + (gates.sum(dim=1).mean() - 1.5) ** 2


def gradients(model: GatedClassifier) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def run(model: GatedClassifier, batch, routes=ROUTES, estimator=reinmax, seen=None, **options):
    model.zero_grad()
    return model(*batch, estimator=forced(routes, estimator, seen), **options)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS.keys())
def test_values_and_gradients_equal_the_slow_loop(estimator):
    """All of them: those of the gates, and those of the weights although skipped inputs have no graph."""
    model, batch = random_gated(), random_batch(LENGTHS)
    fast = run(model, batch, estimator=estimator, keep_states=True)
    loss(fast.logits, fast.gates).backward()
    got = gradients(model)

    model.zero_grad()
    slow = slow_forward(model, batch, ROUTES, estimator)
    loss(slow["logits"], slow["gates"]).backward()
    wanted = gradients(model)

    for name, tensor in (("logits", fast.logits), ("gates", fast.gates), ("margins", fast.margins)):
        torch.testing.assert_close(tensor, slow[name], atol=1e-5, rtol=0, msg=name)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=2e-6, rtol=1e-4, msg=name)
    assert all(gradient.abs().max() > 0 for name, gradient in wanted.items() if "layers.2" not in name)


def test_kept_states_are_the_students_own_and_maps_are_zero_where_the_layer_did_not_run():
    model, batch = random_gated(), random_batch(LENGTHS)
    with torch.no_grad():
        fast = run(model, batch, keep_states=True)
        slow = slow_forward(model, batch, ROUTES, reinmax)
    assert len(fast.hidden_states) == 5 and len(fast.attention_maps) == 4
    for row, length in enumerate(LENGTHS):
        for got, wanted in zip(fast.hidden_states, slow["states"][row], strict=True):
            torch.testing.assert_close(got[row, :length], wanted, atol=1e-5, rtol=0)
        for index, (got, wanted) in enumerate(zip(fast.attention_maps, slow["maps"][row], strict=True)):
            expected = wanted if ROUTES[row, index] else torch.zeros_like(wanted)
            torch.testing.assert_close(got[row, :length, :length], expected, atol=1e-6, rtol=0)


def test_a_layer_that_no_input_runs_gets_no_weight_gradient():
    model = random_gated()
    output = run(model, random_batch(LENGTHS))
    loss(output.logits, output.gates).backward()
    for name, parameter in model.classifier.layers[2].named_parameters():
        assert parameter.grad is None, name  # no graph at all: that saves the time, and AdamW leaves the weight alone
    assert model.classifier.layers[1].up.weight.grad.any()


def test_inputs_that_run_a_layer_teach_it_although_others_in_the_batch_skip_it():
    model = random_gated()
    output = run(model, random_batch(LENGTHS))
    loss(output.logits, output.gates).backward()
    for index in (0, 3):
        grad = model.classifier.layers[index].up.weight.grad
        assert grad is not None and grad.any(), f"layer {index + 1}"


def test_a_skipped_input_teaches_the_gate_but_not_the_layer():
    """Only the loss of input 2, which skips layers 1 and 3: their gates learn from `f(h) - h`, their weights do not."""
    model, gates = random_gated(), []
    output = run(model, random_batch(LENGTHS), seen=gates)
    gradient = torch.stack(torch.autograd.grad(output.logits[1].logsumexp(0), gates, retain_graph=True), dim=1)
    assert (gradient[1].abs() > 1e-5).all() and not gradient[[0, 2, 3, 4, 5]].any()
    output.logits[1].logsumexp(0).backward()
    for index in (0, 2):
        assert all(p.grad is None or not p.grad.any() for p in model.classifier.layers[index].parameters())
        assert model.gates[index].logits.weight.grad.any()


def test_the_gate_gradient_of_a_skipped_input_is_the_change_its_layer_would_make():
    """In the last layer `d logits / d g` is the derivative of the head along `f(h) - h`, `f` computed apart."""
    model, batch = random_gated(), random_batch(LENGTHS)
    routes, gates = ROUTES.clone(), []
    routes[:, 3] = 0
    output = run(model, batch, routes, seen=gates, keep_states=True)
    (got,) = torch.autograd.grad(output.logits.logsumexp(-1).sum(), gates[3])

    hidden = output.hidden_states[3].detach()
    step = torch.zeros(len(LENGTHS), requires_grad=True)
    change = (model.classifier.layers[3](hidden, attention_bias(batch[1]), None)[0] - hidden).detach()
    logits = model.classifier.head(hidden + step[:, None, None] * change)
    (wanted,) = torch.autograd.grad(logits.logsumexp(-1).sum(), step)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)
    assert (wanted.abs() > 1e-5).all()


def test_decisions_are_drawn_from_the_squashed_margins():
    """Gates far beyond the limit still close now and then; without a limit they never do."""
    model, batch = random_gated(), random_batch((4,) * 400)
    for gate in model.gates:
        gate.logits.bias.data.copy_(torch.tensor([20.0, -20.0]))
    with torch.no_grad():
        free = model(*batch, estimator=reinmax, generator=torch.Generator().manual_seed(0))
        limited = model(*batch, estimator=reinmax, generator=torch.Generator().manual_seed(0), margin_limit=1.0)
    assert free.gates.all() and free.margins.min() > 20
    share = torch.tensor(1.0).sigmoid().item()  # of layers run: margins are squashed to 1
    assert abs(limited.gates.mean().item() - share) < 4 * (share * (1 - share) / limited.gates.numel()) ** 0.5
    assert limited.margins.min() > 15  # what is returned is not squashed


def test_without_a_generator_torchs_own_is_drawn_from():
    model, batch = random_gated(), random_batch(LENGTHS * 4)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model(*batch, estimator=reinmax).gates.detach())
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_the_decisions_are_samples_of_the_margins():
    """The first layer's gates, whose margins do not depend on what was drawn before."""
    model, batch = random_gated(), random_batch(LENGTHS)
    output = model(*batch, estimator=straight_through, generator=torch.Generator().manual_seed(5))
    drawn = sample(output.margins[:, 0], torch.Generator().manual_seed(5))
    torch.testing.assert_close(output.gates[:, 0], drawn, atol=1e-6, rtol=0)


# The serving pass


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, CONFIG.max_positions), min_size=1, max_size=8),
    st.integers(0, 1000),
    st.floats(-1.5, 1.5, width=32),
)
def test_routing_a_batch_equals_routing_each_input_alone(lengths, seed, threshold):
    """Margins and logits do not depend on neighbours or padding; a route may only differ in a near tie."""
    model, batch = random_gated(), random_batch(lengths, seed)
    together = model.route(*batch, above(threshold))
    for row, length in enumerate(lengths):
        ids, mask, types = (tensor[row : row + 1, :length] for tensor in batch)
        alone = model.route(ids, mask, types, above(threshold))
        if (alone.margins - threshold).abs().min() < 1e-4:
            continue
        assert torch.equal(together.gates[row], alone.gates[0])
        torch.testing.assert_close(together.margins[row], alone.margins[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.logits[row], alone.logits[0], atol=1e-5, rtol=0)


def test_routes_really_differ_in_the_model_of_these_tests():
    output = random_gated().route(*random_batch(LENGTHS * 3), above(0.0))
    assert len(output.gates.unique(dim=0)) >= 3 and 0.2 < output.gates.float().mean() < 0.8


def test_routing_equals_the_slow_loop():
    model, batch = random_gated(), random_batch(LENGTHS)
    output = model.route(*batch, lambda index, margin: ROUTES[:, index] > 0)
    with torch.no_grad():
        slow = slow_forward(model, batch, ROUTES, reinmax)
    assert torch.equal(output.gates, ROUTES > 0)
    torch.testing.assert_close(output.logits, slow["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.margins, slow["margins"], atol=1e-5, rtol=0)


def test_the_decision_is_asked_with_the_layers_index_and_its_margins():
    model, batch = random_gated(), random_batch(LENGTHS)
    asked = []

    def decide(index: int, margin: Tensor) -> Tensor:
        asked.append((index, margin))
        return margin > 0

    output = model.route(*batch, decide)
    assert [index for index, _ in asked] == [0, 1, 2, 3]
    assert torch.equal(torch.stack([margin for _, margin in asked], dim=1), output.margins)


@torch.no_grad()
def test_with_every_layer_run_it_is_the_plain_classifier_and_with_none_the_head_on_the_embeddings():
    model, batch = random_gated(), random_batch(LENGTHS)
    everything = model.route(*batch, above(float("-inf")))
    torch.testing.assert_close(everything.logits, model.classifier(*batch).logits, atol=1e-6, rtol=0)
    nothing = model.route(*batch, above(float("inf")))
    wanted = model.classifier.head(model.classifier.embeddings(batch[0], batch[2]))
    assert torch.equal(nothing.logits, wanted) and not nothing.gates.any()


# Gates


def test_a_gate_sees_the_mean_of_the_real_tokens_only():
    gate = random_gated().gates[0]
    hidden, mask = torch.randn(len(LENGTHS), 24, CONFIG.hidden_size), random_batch(LENGTHS)[1]
    wanted = gate.margin(hidden, mask)
    garbage = torch.where(mask[..., None].bool(), hidden, 1e4 * torch.randn_like(hidden))
    torch.testing.assert_close(gate.margin(garbage, mask), wanted, atol=1e-5, rtol=0)
    alone = [
        gate.margin(hidden[row : row + 1, :length], mask[row : row + 1, :length]) for row, length in enumerate(LENGTHS)
    ]
    torch.testing.assert_close(wanted, torch.cat(alone), atol=1e-5, rtol=0)
    last_token = hidden.clone()
    last_token[2, 23] = 5 * torch.randn(CONFIG.hidden_size)
    assert (gate.margin(last_token, mask) - wanted).abs()[2] > 1e-3


def test_index_0_is_run():
    gate, (hidden, mask) = (
        random_gated().gates[0],
        (torch.randn(3, 5, CONFIG.hidden_size), torch.ones(3, 5, dtype=torch.int64)),
    )
    logits = gate(hidden, mask)
    assert logits.shape == (3, 2)
    assert torch.equal(gate.margin(hidden, mask), logits[:, 0] - logits[:, 1])


@pytest.mark.parametrize("bias", [-2.0, 0.0, 1.0])
def test_a_new_gate_starts_near_its_bias_and_sees_inputs_of_any_scale_alike(bias):
    torch.manual_seed(0)
    gate, hidden, mask = Gate(64, 32, bias), torch.randn(50, 7, 64), torch.ones(50, 7, dtype=torch.int64)
    margin = gate.margin(hidden, mask)
    assert ((margin - bias).abs() < 0.3).all() and margin.std() > 0
    torch.testing.assert_close(gate.margin(100 * hidden, mask), margin, atol=1e-3, rtol=0)


MARGINS = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20)


@settings(deadline=None)
@given(MARGINS)
def test_an_infinite_limit_squashes_nothing(margins):
    margin = torch.tensor(margins)
    assert torch.equal(squash(margin, float("inf")), margin)


@settings(deadline=None)
@given(MARGINS, st.floats(0.25, 50))
def test_squashing_bounds_keeps_order_and_sign_and_never_enlarges(margins, limit):
    margin = torch.tensor(margins, dtype=torch.float64).sort().values
    squashed = squash(margin, limit)
    assert (squashed.abs() <= limit).all() and (squashed.abs() <= margin.abs() * (1 + 1e-15)).all()
    assert (squashed.diff() >= 0).all()
    assert torch.equal(squashed.sign(), margin.sign())
    assert torch.equal(squash(-margin, limit), -squashed)


@settings(deadline=None)
@given(st.floats(0.25, 50))
def test_squashing_leaves_small_margins_and_their_gradient_alone(limit):
    margin = torch.tensor([0.0, limit / 1000], dtype=torch.float64, requires_grad=True)
    squashed = squash(margin, limit)
    torch.testing.assert_close(squashed.detach(), margin.detach(), rtol=1e-5, atol=0)
    (slope,) = torch.autograd.grad(squashed.sum(), margin)
    torch.testing.assert_close(slope, torch.ones(2, dtype=torch.float64), rtol=1e-5, atol=0)


# Routes given from outside, and a route that is fixed


def alone(model: Classifier, batch: tuple[Tensor, ...], routes: Tensor) -> tuple[Tensor, list, list]:
    """Logits, and by row all hidden states and attention maps (None where the layer did not run): every input alone and
    without its padding, on its own route."""
    logits, states, maps = [], [], []
    for row, length in enumerate(batch[1].sum(dim=1).tolist()):
        ids, mask, types = (tensor[row : row + 1, :length] for tensor in batch)
        of_row, of_row_maps = [model.embeddings(ids, types)], []
        for runs, layer in zip(routes[row].tolist(), model.layers, strict=True):
            after, attention = layer(of_row[-1], attention_bias(mask), None) if runs else (of_row[-1], None)
            of_row.append(after)
            of_row_maps.append(attention[0].mean(dim=0) if runs else None)
        logits.append(model.head(of_row[-1])[0])
        states.append([state[0] for state in of_row])
        maps.append(of_row_maps)
    return torch.stack(logits), states, maps


TOGETHER: list[Route] = [(1, 2, 4), (1, 4), (1, 2), (4,)]  # no route runs layer 3


def everywhere(route: Route) -> Tensor:
    """The route for each row, bool [b, 4]."""
    return torch.tensor([layer in route for layer in range(1, 5)]).expand(len(LENGTHS), 4)


def test_following_routes_equals_the_slow_loop_in_values_and_gradients():
    """Also where routes have their first layers in common, each of which then learns from all of them."""
    model, batch = random_gated(), random_batch(LENGTHS)

    def gradients_of(logits: list[Tensor], last: list[Tensor]) -> dict[str, Tensor]:
        model.zero_grad()
        losses = [torch.nn.functional.cross_entropy(of_route, LABELS) for of_route in logits]
        torch.stack(losses).mean().add(sum(state.square().mean() for state in last) / len(losses)).backward()
        return gradients(model)

    outputs = model.follow(*batch, TOGETHER, keep_states=True)
    last = [
        state[:length] for output in outputs for state, length in zip(output.hidden_states[-1], LENGTHS, strict=True)
    ]
    got = gradients_of([output.logits for output in outputs], last)
    each = [alone(model.classifier, batch, everywhere(route)) for route in TOGETHER]
    wanted = gradients_of([logits for logits, _, _ in each], [row[-1] for _, states, _ in each for row in states])

    for output, (logits, states, maps) in zip(outputs, each, strict=True):
        torch.testing.assert_close(output.logits, logits, atol=1e-5, rtol=0)
        assert len(output.hidden_states) == 5 and len(output.attention_maps) == 4
        for row, length in enumerate(LENGTHS):
            for ours, theirs in zip(output.hidden_states, states[row], strict=True):
                torch.testing.assert_close(ours[row, :length], theirs, atol=1e-5, rtol=0)
            for ours, theirs in zip(output.attention_maps, maps[row], strict=True):
                expected = torch.zeros(length, length) if theirs is None else theirs
                torch.testing.assert_close(ours[row, :length, :length], expected, atol=1e-6, rtol=0)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=2e-6, rtol=1e-4, msg=name)
    for index in (0, 1, 3):
        assert got[f"classifier.layers.{index}.up.weight"].any()


def test_what_routes_have_in_common_at_their_beginning_is_computed_once():
    model, ran = random_gated(), []
    for number, layer in enumerate(model.classifier.layers, 1):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    model.follow(*random_batch(LENGTHS), [(1, 2, 4), (1, 2, 3, 4), (1, 4), (1, 2, 4)])
    assert sorted(ran) == [1, 2, 3, 4, 4, 4]


def test_following_gives_no_gradient_to_a_layer_that_no_route_runs_nor_to_gates():
    model = random_gated()
    outputs = model.follow(*random_batch(LENGTHS), TOGETHER)
    torch.stack([output.logits for output in outputs]).logsumexp(-1).sum().backward()
    assert all(parameter.grad is None for parameter in model.classifier.layers[2].parameters())
    assert all(parameter.grad is None for parameter in model.gates.parameters())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, CONFIG.max_positions), min_size=1, max_size=6), st.integers(0, 1000), st.data())
def test_any_routes_are_followed(lengths, seed, data):
    batch, row = random_batch(lengths, seed), st.lists(st.booleans(), min_size=4, max_size=4)
    rows = data.draw(st.lists(row, min_size=1, max_size=4))
    model = random_gated()
    with torch.no_grad():
        outputs = model.follow(*batch, [as_route(np.array(runs)) for runs in rows])
        for output, runs in zip(outputs, rows, strict=True):
            wanted = alone(model.classifier, batch, torch.tensor([runs] * len(lengths)))[0]
            torch.testing.assert_close(output.logits, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("route", [(1,), (4,), (1, 3), (2, 3, 4), (1, 2, 3, 4)])
@torch.no_grad()
def test_a_fixed_route_is_the_one_that_every_input_takes(route):
    model, batch = random_fixed(route), random_batch(LENGTHS)
    output = model.route(*batch, above(0.0))
    chosen = torch.tensor([layer in route for layer in range(1, 5)])
    assert (output.gates == chosen).all() and (output.margins == torch.where(chosen, 20.0, -20.0)).all()
    wanted = alone(random_classifier(), batch, chosen.expand(len(LENGTHS), 4))[0]
    torch.testing.assert_close(output.logits, wanted, atol=1e-5, rtol=0)


def test_a_fixed_route_has_no_gate_to_train():
    model = random_fixed((1, 3))
    assert model.fixed_route == (1, 3) and not list(model.gates.parameters()) and not model.gates.state_dict()
    assert random_gated().fixed_route is None
