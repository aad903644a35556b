"""The gated classifier: before each layer a gate decides, per input, whether the layer runs (paper, section 4.2)."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hadskip_export.modeling.encoder import Classifier, Layer, Output, attention_bias
from hadskip_export.modeling.reinmax import sample
from hadskip_export.routing.routes import FIXED_MARGIN, Route, as_row

Estimator = Callable[[Tensor, Tensor], Tensor]


class Gate(nn.Module):
    """One hidden layer and two logits (run, skip) on the mean of the real tokens.

    The mean, not the first token: the embedding of [CLS] is the same vector for every input, so a gate on it
    would be blind before layer 1. The mean is normalised so that gates at every depth see inputs of one scale.
    """

    def __init__(self, hidden_size: int, width: int = 64, bias: float = 0.0):
        super().__init__()
        self.hidden = nn.Linear(hidden_size, width)
        self.logits = nn.Linear(width, 2)
        nn.init.normal_(self.logits.weight, std=0.01)
        with torch.no_grad():
            self.logits.bias.copy_(torch.tensor([bias / 2, -bias / 2]))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """float32 [b, s, H], int64 [b, s] -> logits float32 [b, 2]; index 0 is run, as in the paper's algorithm 1."""
        return self.decide(pooled(hidden_states, attention_mask))

    def decide(self, pooled_states: Tensor) -> Tensor:
        """What `pooled` gives, float32 [b, H] -> logits float32 [b, 2]."""
        return self.logits(torch.tanh(self.hidden(pooled_states))).float()  # under autocast too

    def margin(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """`logit_run - logit_skip`, float32 [b]: the layer runs where it is above the threshold."""
        logits = self(hidden_states, attention_mask)
        return logits[:, 0] - logits[:, 1]


class FixedGate(nn.Module):
    """In a gate's place where every input takes the same route: the rivals without gates."""

    def __init__(self, runs: bool):
        super().__init__()
        self._margin = FIXED_MARGIN if runs else -FIXED_MARGIN

    def margin(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """The same for every input, float32 [b]."""
        return hidden_states.new_full(hidden_states.shape[:1], self._margin)


def pooled(hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
    """What a gate sees, float32 [b, H]: the mean of the real tokens, normalised."""
    mask = attention_mask.to(hidden_states.dtype)
    mean = (mask[:, None] @ hidden_states)[:, 0] / mask.sum(dim=1, keepdim=True)
    return F.layer_norm(mean, mean.shape[-1:])


@dataclass
class GatedOutput(Output):
    """`Output` and what the gates did, both [b, L]: gates as 0. or 1. (with a gradient in training), margins."""

    gates: Tensor | None = None
    margins: Tensor | None = None


class GatedClassifier(nn.Module):
    """A classifier with one gate per layer: `h_i = f_i(h_{i-1}) g_i + h_{i-1} (1 - g_i)` for each input.

    Args:
        fixed_route: the layers that every input runs, from 1, in place of gates (`FixedGate`).
        upfront: every gate sees what the embeddings give, and not what the layers before it made of that.
    """

    def __init__(
        self,
        classifier: Classifier,
        gate_width: int = 64,
        gate_bias: float = 0.0,
        fixed_route: Route | None = None,
        upfront: bool = False,
    ):
        super().__init__()
        self.classifier = classifier
        self.fixed_route, self.upfront = fixed_route, upfront
        config = classifier.config
        gates: Iterable[nn.Module]
        if fixed_route is None:
            gates = (Gate(config.hidden_size, gate_width, gate_bias) for _ in classifier.layers)
        else:
            gates = map(FixedGate, as_row(fixed_route, config.num_layers).tolist())
        self.gates = nn.ModuleList(gates)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        *,
        estimator: Estimator,
        margin_limit: float = float("inf"),
        keep_states: bool = False,
        generator: torch.Generator | None = None,
    ) -> GatedOutput:
        """The training pass: decisions are sampled and carry the estimator's gradient.

        Args:
            estimator: `reinmax` or `straight_through`.
            margin_limit: decisions are drawn from margins squashed smoothly into +-limit, so that every gate keeps
                some chance of either; a saturated gate would hardly learn any more.
            keep_states: keep every hidden state (the student's own, whether or not the layer ran) and the attention
                maps (zero for inputs that skipped the layer).
            generator: what the decisions are drawn from; torch's own if left out.
        """
        model = self.classifier
        hidden = model.embeddings(input_ids, token_type_ids)
        bias, distances = attention_bias(attention_mask, hidden.dtype), model.distances()
        states, maps, gates, margins, embedded = [hidden], [], [], [], hidden
        for layer, gate in zip(model.layers, self.gates, strict=True):
            margin = gate.margin(embedded if self.upfront else hidden, attention_mask)
            drawn_from = squash(margin, margin_limit)
            g = estimator(drawn_from, sample(drawn_from, generator))
            branch, probabilities = _run_open_rows(layer, hidden, bias, distances, g.detach() > 0)
            g_wide = g[:, None, None]
            hidden = branch * g_wide + hidden * (1 - g_wide)
            gates.append(g)
            margins.append(margin)
            if keep_states:
                states.append(hidden)
                maps.append(probabilities)
        logits = model.head(hidden, attention_mask)
        return GatedOutput(
            logits, states if keep_states else [], maps, torch.stack(gates, dim=1), torch.stack(margins, dim=1)
        )

    def follow(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        routes: Sequence[Route],
        keep_states: bool = False,
    ) -> list[Output]:
        """The pass on each of some routes, for every input, with a gradient; no gate is asked. What the routes have in
        common at their beginning is computed once.

        Args:
            routes: at least one.
            keep_states: as in `forward`.

        Returns:
            A route's output each.
        """
        model = self.classifier
        embedded = model.embeddings(input_ids, token_type_ids)
        bias, distances = attention_bias(attention_mask, embedded.dtype), model.distances()
        after: dict[Route, Tensor] = {(): embedded}  # the layers run -> hidden states
        maps: dict[Route, Tensor] = {}
        for route in routes:
            for count, number in enumerate(route, 1):
                ran = route[:count]
                if ran not in after:
                    after[ran], probabilities = model.layers[number - 1](after[ran[:-1]], bias, distances)
                    if keep_states:
                        maps[ran] = probabilities.mean(dim=1)
        none = embedded.new_zeros(len(embedded), embedded.shape[1], embedded.shape[1])

        def output(route: Route) -> Output:
            logits = model.head(after[route], attention_mask)
            if not keep_states:
                return Output(logits)
            ran = [tuple(layer for layer in route if layer <= number) for number in range(len(model.layers) + 1)]
            seen = [maps[now] if now != before else none for before, now in itertools.pairwise(ran)]
            return Output(logits, [after[now] for now in ran], seen)

        return [output(route) for route in routes]

    def answer(self, route: Route, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """What inputs are answered that have run these layers, logits float32 [b, labels]."""
        return self.classifier.head(hidden_states, attention_mask)

    @torch.no_grad()
    def route(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, decide: Callable[[int, Tensor], Tensor]
    ) -> GatedOutput:
        """The serving pass: hard decisions, and a layer computes only the inputs that run it.

        Args:
            decide: (layer index from 0, margin float32 [b]) -> which inputs run the layer, bool [b].
        """
        model = self.classifier
        hidden = model.embeddings(input_ids, token_type_ids)
        bias, distances = attention_bias(attention_mask, hidden.dtype), model.distances()
        gates, margins, embedded = [], [], hidden
        for index, (layer, gate) in enumerate(zip(model.layers, self.gates, strict=True)):
            margin = gate.margin(embedded if self.upfront else hidden, attention_mask)
            rows = decide(index, margin)
            if rows.any():
                hidden = hidden.clone()
                hidden[rows] = layer(hidden[rows], bias[rows], distances)[0]
            gates.append(rows)
            margins.append(margin)
        return GatedOutput(
            model.head(hidden, attention_mask), [], [], torch.stack(gates, dim=1), torch.stack(margins, dim=1)
        )


def squash(margin: Tensor, limit: float) -> Tensor:
    """The margin, squashed smoothly into +-limit; as it is where the limit is infinite."""
    return margin if math.isinf(limit) else limit * torch.tanh(margin / limit)


def _run_open_rows(
    layer: Layer, hidden: Tensor, bias: Tensor, distances: Tensor | None, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """`f(h)` for every input, with a gradient only where the gate is open.

    The gate's own gradient needs `f(h) - h` of closed inputs too, but a layer that did not run must not learn from
    them: those rows are computed without a graph, which also saves their backward pass.

    Returns:
        f(h), float32 [b, s, H], and the head-averaged attention maps, float32 [b, s, s], zero where closed.
    """
    run, skipped = rows.nonzero()[:, 0], (~rows).nonzero()[:, 0]
    branch = torch.zeros_like(hidden)
    maps = hidden.new_zeros(hidden.shape[0], hidden.shape[1], hidden.shape[1])
    if len(run):
        output, probabilities = layer(hidden[run], bias[run], distances)
        branch = branch.index_copy(0, run, output)
        maps = maps.index_copy(0, run, probabilities.mean(dim=1))
    if len(skipped) and torch.is_grad_enabled():
        with torch.no_grad():
            output, _ = layer(hidden[skipped], bias[skipped], distances)
        branch = branch.index_copy(0, skipped, output)  # outside: it must keep the graph of the rows that run
    return branch, maps
