"""A classifier with an exit after each layer: the rivals that stop early, where HadSkip jumps.

An exit answers from what its layer gave; the last one is the model's own head. Which answer is good enough a criterion
says (`routing.criteria`). One rival does both: on the way to an exit, gates let an input jump.
"""

import copy
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from hadskip_export.modeling.encoder import Classifier, EncoderConfig, Head, attention_bias
from hadskip_export.modeling.gated import FixedGate, Gate, GatedClassifier
from hadskip_export.routing.criteria import UNCERTAINTY, WORTH
from hadskip_export.routing.routes import Route

# What an exit is. `head`: a copy of the model's own head; `linear`: its last linear map alone, behind the model's own
# pooler; `certain`: a copy that also tells how certain it is; `attention`: a small layer of attention; `judged`: that,
# and a gate that tells whether to go on.
ExitKind = Literal["head", "linear", "certain", "attention", "judged"]
EXIT_KINDS = get_args(ExitKind)
TOLD: dict[ExitKind, str] = {"certain": UNCERTAINTY, "judged": WORTH}  # the criterion that reads what else they tell
ATTENTION_WIDTH, ATTENTION_HEADS = 128, 2  # FastBERT's


class CertainHead(Head):
    """A head that has learned when it is right (BERxiT's "learning to exit").

    Args:
        head: whose weights it begins with.
        certainty: one linear map, the same in all exits.
    """

    def __init__(self, config: EncoderConfig, head: Head, certainty: nn.Linear):
        super().__init__(config)
        self.load_state_dict(head.state_dict())
        self.certainty = certainty

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """float32 [b, s, H], int64 [b, s] -> float32 [b, classes + 1]: logits, and that of being right."""
        pooled = self.pool(hidden_states, attention_mask)
        return torch.cat((self.classify(pooled), self.certainty(pooled).float()), dim=1)


class AttentionHead(nn.Module):
    """FastBERT's student classifier (arXiv:2004.02178): a narrow layer of attention, and the first token
    of what it gives.

    Only this token asks. So no token needs a key or a value of its own: the map to keys is applied to the query,
    transposed, and that to values to the sum. A bias of the first would change no weight of attention, and one of the
    second is `output`'s.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        each = ATTENTION_WIDTH // ATTENTION_HEADS
        self.narrow = nn.Linear(config.hidden_size, ATTENTION_WIDTH)
        self.query = nn.Linear(ATTENTION_WIDTH, ATTENTION_WIDTH)
        self.key = nn.Parameter(torch.empty(ATTENTION_HEADS, each, ATTENTION_WIDTH))
        self.value = nn.Parameter(torch.empty(ATTENTION_HEADS, ATTENTION_WIDTH, each))
        for weight in (self.key, self.value):  # as a linear map's of so many inputs
            nn.init.uniform_(weight, -(ATTENTION_WIDTH**-0.5), ATTENTION_WIDTH**-0.5)
        self.output = nn.Linear(ATTENTION_WIDTH, ATTENTION_WIDTH)
        self.dense = nn.Linear(ATTENTION_WIDTH, ATTENTION_WIDTH)
        self.classifier = nn.Linear(ATTENTION_WIDTH, len(config.labels))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """float32 [b, s, H], int64 [b, s] -> logits float32 [b, labels]."""
        return self.classify(self.read(hidden_states, attention_mask))

    def read(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """What it classifies, float [b, w], within -1 and 1."""
        narrow = self.narrowed(hidden_states)
        query = self.query(narrow[:, 0]).view(narrow.shape[0], ATTENTION_HEADS, 1, -1)  # [b, N, 1, w / N]
        tokens = narrow[:, None]  # [b, 1, s, w]
        scores = query @ self.key @ tokens.transpose(-1, -2) / query.shape[-1] ** 0.5  # [b, N, 1, s]
        weights = (scores + attention_bias(attention_mask, scores.dtype)).softmax(dim=-1)
        first = self.output((self.dropout(weights) @ tokens @ self.value).flatten(1))
        return torch.tanh(self.dense(first))

    def classify(self, read: Tensor) -> Tensor:
        """logits float32 [b, labels]"""
        return self.classifier(self.dropout(read)).float()

    def narrowed(self, hidden_states: Tensor) -> Tensor:
        """What it attends to, float [b, s, w]."""
        return torch.tanh(self.narrow(hidden_states))


class JudgedHead(AttentionHead):
    """FastBERT's, and a gate that sees what it classifies."""

    def __init__(self, config: EncoderConfig, gate_width: int):
        super().__init__(config)
        self.gate = Gate(ATTENTION_WIDTH, gate_width)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """float32 [b, s, H], int64 [b, s] -> float32 [b, labels + 1]: logits, and the gate's margin."""
        read = self.read(hidden_states, attention_mask)
        run, skip = self.gate.decide(read).split(1, dim=1)
        return torch.cat((self.classify(read), run - skip), dim=1)


class ExitClassifier(nn.Module):
    """A classifier with exits.

    Args:
        classifier: its head is the last exit.
        kind: what the others are. They begin with the head's weights, as far as they have such.
        criterion: a name in `routing.criteria.CRITERIA`: when an input leaves.
        gate_width: of gates, where it has any.
        jumps: whether there are gates before all layers but the first, each of which lets an input skip its layer where
            the margin is not above 0, whatever the budget.
    """

    fixed_route = None  # it is the input that decides

    def __init__(
        self, classifier: Classifier, kind: ExitKind, criterion: str, gate_width: int = 64, jumps: bool = False
    ):
        super().__init__()
        assert go_together(kind, criterion, jumps)
        self.classifier, self.kind, self.criterion = classifier, kind, criterion
        config, head = classifier.config, classifier.head
        certainty = nn.Linear(config.hidden_size, 1) if kind == "certain" else None
        self.exits = nn.ModuleList(_exit(kind, config, head, certainty, gate_width) for _ in classifier.layers[1:])
        self.gates = nn.ModuleList()
        if jumps:
            jumping = (Gate(config.hidden_size, gate_width) for _ in classifier.layers[1:])
            self.gates.extend((FixedGate(True), *jumping))

    @property
    def all_exits(self) -> list[nn.Module]:
        """The model's own head is the last."""
        return [*self.exits, self.classifier.head]

    @property
    def exits_take_mask(self) -> bool:
        return self.kind in ("attention", "judged") or self.classifier.config.pooling == "mean"

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> list[Tensor]:
        """int64 [b, s] three times -> the answers of every exit, as these have them, and the logits."""
        return self.ask(input_ids, attention_mask, token_type_ids)[0]

    def ask(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[list[Tensor], Tensor]:
        """
        Returns:
            What `forward` does, and the layers that inputs run if no exit lets them go, bool [b, L]. A layer that an
            input skips has an answer for it all the same.
        """
        answers, runs = [], []
        passed = self.through(input_ids, attention_mask, token_type_ids)
        for leave, (output, ran) in zip(self.all_exits, passed, strict=True):
            answers.append(leave(output, attention_mask))
            runs.append(ran)
        return answers, torch.stack(runs, dim=1)

    def through(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields what each layer gives, float [b, s, H], and which inputs run it, bool [b]."""
        model = self.classifier
        hidden = model.embeddings(input_ids, token_type_ids)
        bias, distances = attention_bias(attention_mask, hidden.dtype), model.distances()
        for index, layer in enumerate(model.layers):
            runs = self.runs(index, hidden, attention_mask)
            output = layer(hidden, bias, distances)[0]
            yield output, runs
            hidden = torch.where(runs[:, None, None], output, hidden) if self.gates else output

    def answer(self, route: Route, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """What inputs are answered that have run these layers, at least one: by the exit after the last of them, logits
        float32 [b, labels]."""
        leave = self.all_exits[route[-1] - 1]
        return leave(hidden_states, attention_mask)[:, : len(self.classifier.config.labels)]

    def runs(self, index: int, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """Whether layer `index` (from 0) is run by inputs that no exit has let go, bool [b]."""
        if not self.gates:
            return torch.ones(len(hidden_states), dtype=torch.bool, device=hidden_states.device)
        return self.gates[index].margin(hidden_states, attention_mask) > 0


def go_together(kind: ExitKind, criterion: str, jumps: bool) -> bool:
    """Whether exits tell what a criterion reads, no more, and have no gates of two kinds."""
    told = criterion == TOLD[kind] if kind in TOLD else criterion not in TOLD.values()
    return told and not (jumps and kind == "judged")


def _exit(kind: ExitKind, config: EncoderConfig, head: Head, certainty: nn.Linear | None, gate_width: int) -> nn.Module:
    if kind == "judged":
        return JudgedHead(config, gate_width)
    if kind == "attention":
        return AttentionHead(config)
    if certainty is not None:
        return CertainHead(config, head, certainty)
    own = copy.deepcopy(head)
    if kind == "linear":
        own.states_norm, own.pooler, own.pooled_norm = head.states_norm, head.pooler, head.pooled_norm
    return own


Student = GatedClassifier | ExitClassifier
