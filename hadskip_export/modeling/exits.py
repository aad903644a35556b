"""A classifier with an exit after each layer: the rivals that stop early, where HadSkip jumps.

An exit answers from what its layer gave; the last one is the model's own head. Which answer is good enough a criterion
says (`routing.criteria`).
"""

import copy
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from hadskip_export.modeling.encoder import Classifier, EncoderConfig, Head, attention_bias
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.criteria import UNCERTAINTY

# What an exit is. `head`: a copy of the model's own head; `linear`: its last linear map alone, behind the model's own
# pooler; `certain`: a copy that also tells how certain it is; `attention`: a small layer of attention.
ExitKind = Literal["head", "linear", "certain", "attention"]
EXIT_KINDS = get_args(ExitKind)
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
    of what it gives."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.narrow = nn.Linear(config.hidden_size, ATTENTION_WIDTH)
        self.query_key_value = nn.Linear(ATTENTION_WIDTH, 3 * ATTENTION_WIDTH)
        self.output = nn.Linear(ATTENTION_WIDTH, ATTENTION_WIDTH)
        self.dense = nn.Linear(ATTENTION_WIDTH, ATTENTION_WIDTH)
        self.classifier = nn.Linear(ATTENTION_WIDTH, len(config.labels))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """float32 [b, s, H], int64 [b, s] -> logits float32 [b, classes]."""
        narrow = torch.tanh(self.narrow(hidden_states))
        b, s, width = narrow.shape
        projected = self.query_key_value(narrow).view(b, s, 3, ATTENTION_HEADS, width // ATTENTION_HEADS)
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # [b, N, s, w / N]
        scores = query[:, :, :1] @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # of the first token alone
        weights = (scores + attention_bias(attention_mask, scores.dtype)).softmax(dim=-1)
        first = self.output((self.dropout(weights) @ value).reshape(b, width))
        return self.classifier(self.dropout(torch.tanh(self.dense(first)))).float()


class ExitClassifier(nn.Module):
    """A classifier with exits.

    Args:
        classifier: its head is the last exit.
        kind: what the others are. They begin with the head's weights, as far as they have such.
        criterion: a name in `routing.criteria.CRITERIA`: when an input leaves.
    """

    fixed_route = None  # it is the input that decides

    def __init__(self, classifier: Classifier, kind: ExitKind, criterion: str):
        super().__init__()
        assert (kind == "certain") == (criterion == UNCERTAINTY)
        self.classifier, self.kind, self.criterion = classifier, kind, criterion
        config, head = classifier.config, classifier.head
        certainty = nn.Linear(config.hidden_size, 1) if kind == "certain" else None
        self.exits = nn.ModuleList(_exit(kind, config, head, certainty) for _ in classifier.layers[1:])

    @property
    def exits_take_mask(self) -> bool:
        return self.kind == "attention" or self.classifier.config.pooling == "mean"

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> list[Tensor]:
        """int64 [b, s] three times -> the answers of every exit, as these have them, and the logits."""
        model = self.classifier
        hidden = model.embeddings(input_ids, token_type_ids)
        bias, distances = attention_bias(attention_mask, hidden.dtype), model.distances()
        answers = []
        for layer, leave in zip(model.layers, [*self.exits, model.head], strict=True):
            hidden = layer(hidden, bias, distances)[0]
            answers.append(leave(hidden, attention_mask))
        return answers


def _exit(kind: ExitKind, config: EncoderConfig, head: Head, certainty: nn.Linear | None) -> nn.Module:
    if kind == "attention":
        return AttentionHead(config)
    if certainty is not None:
        return CertainHead(config, head, certainty)
    own = copy.deepcopy(head)
    if kind == "linear":
        own.states_norm, own.pooler, own.pooled_norm = head.states_norm, head.pooler, head.pooled_norm
    return own


Student = GatedClassifier | ExitClassifier
