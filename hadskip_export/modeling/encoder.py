"""A BERT-type classifier on one page: embeddings, post-norm transformer layers, head.

What one family of encoders has and another has not is a value of `EncoderConfig` (families/ tells which). The parts are
what the exporter cuts into pieces, so each is a module with plain tensors in and out. Shapes use `b` batch, `s` length
in tokens, `H` hidden size, `N` heads. Oracle: `transformers` (tests/modeling).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _tanh_gelu(inputs: Tensor) -> Tensor:
    return F.gelu(inputs, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and variants of a BERT-type classifier. `num_layers` is the L of the paper.

    Args:
        type_vocab_size: segments that have an embedding; with one or none, the model is not told any.
        family: a name in `families.FAMILIES`.
        embedding_size: of the embeddings where they are projected to `hidden_size` afterwards.
        padding_id: where positions count the tokens that are not this one, and begin after it; elsewhere they count all
            tokens, from 0.
        head_activation: between the head's two linear maps.
        head_dropout: before the last of them; `dropout` if left out.
        head_drops_input: the head has dropout before the first, too.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    type_vocab_size: int
    labels: tuple[str, ...]
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    family: str = "bert"
    embedding_size: int | None = None
    padding_id: int | None = None
    head_activation: str = "tanh"
    head_dropout: float | None = None
    head_drops_input: bool = False

    @property
    def segments(self) -> int:
        """That the model tells apart."""
        return max(1, self.type_vocab_size)

    @property
    def has_segments(self) -> bool:
        return self.segments > 1

    @property
    def projects_embeddings(self) -> bool:
        return self.embedding_size not in (None, self.hidden_size)

    @property
    def most_tokens(self) -> int:
        """That an input may have."""
        return self.max_positions - (0 if self.padding_id is None else self.padding_id + 1)


@dataclass
class Output:
    """What a forward pass gives. Lists are empty unless the pass was asked to keep them."""

    logits: Tensor  # float32 [b, classes]
    hidden_states: list[Tensor] = field(default_factory=list)  # L + 1 of float32 [b, s, H]: h_0 (embeddings) to h_L
    attention_maps: list[Tensor] = field(default_factory=list)  # L of float32 [b, s, s], mean over heads


def attention_bias(attention_mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Mask of real tokens, int64 [b, s], as the term added to attention scores, [b, 1, 1, s]: 0 or very negative."""
    return (1 - attention_mask[:, None, None, :]).to(dtype) * torch.finfo(dtype).min


class Embeddings(nn.Module):
    """Word + position + segment, normalised: `e` of the paper, section 3.1."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        width = config.embedding_size or config.hidden_size
        self.padding_id, self.has_segments = config.padding_id, config.has_segments
        self.word = nn.Embedding(config.vocab_size, width)
        self.position = nn.Embedding(config.max_positions, width)
        self.segment = nn.Embedding(config.type_vocab_size, width) if config.type_vocab_size else None
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.projection = nn.Linear(width, config.hidden_size) if config.projects_embeddings else None

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """int64 [b, s] twice -> float32 [b, s, H]. A model without segments is not asked for them, and ignores them."""
        embedded = self.word(input_ids) + self.position(self._positions(input_ids))
        if self.segment is not None:
            embedded = embedded + (self.segment(token_type_ids) if self.has_segments else self.segment.weight)
        embedded = self.dropout(self.norm(embedded))
        return embedded if self.projection is None else self.projection(embedded)

    def _positions(self, input_ids: Tensor) -> Tensor:
        if self.padding_id is None:
            return torch.arange(input_ids.shape[1], device=input_ids.device)
        real = (input_ids != self.padding_id).long()
        return real.cumsum(dim=1) * real + self.padding_id


class Layer(nn.Module):
    """One transformer layer, `f_i` of the paper: attention and feed-forward, each added and then normalised."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        hidden = config.hidden_size
        self.num_heads = config.num_heads
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.attention_output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.up = nn.Linear(hidden, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.activation = ACTIVATIONS[config.activation]
        self.attention_dropout = nn.Dropout(config.attention_dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            hidden_states: float32 [b, s, H].
            bias: what `attention_bias` gives, [b, 1, 1, s].

        Returns:
            The new hidden states, float32 [b, s, H], and the attention probabilities, float32 [b, N, s, s].
        """
        query, key, value = self.heads(self.query_key_value(hidden_states), 3)
        return self.attend(hidden_states, query, key, value, bias)

    def heads(self, projected: Tensor, parts: int) -> Tensor:
        """Several projections side by side, [b, s, parts H] -> [parts, b, N, s, H / N]."""
        b, s, width = projected.shape
        return projected.view(b, s, parts, self.num_heads, width // parts // self.num_heads).permute(2, 0, 3, 1, 4)

    def attend(
        self, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The rest of the layer, for as many tokens as there are queries.

        Args:
            hidden_states: of the tokens that ask, float32 [b, t, H].
            query: float32 [b, N, t, H / N].
            key, value: float32 [b, N, s, H / N].

        Returns:
            As `forward`: float32 [b, t, H] and [b, N, t, s].
        """
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias  # [b, N, t, s]
        probabilities = scores.softmax(dim=-1)
        context = self.attention_dropout(probabilities) @ value  # [b, N, t, H / N]
        context = context.transpose(1, 2).reshape(hidden_states.shape)
        attended = self.attention_norm(hidden_states + self.dropout(self.attention_output(context)))
        fed_forward = self.down(self.activation(self.up(attended)))
        return self.output_norm(attended + self.dropout(fed_forward)), probabilities


class Head(nn.Module):
    """Pooler and classifier on the first token: `f_out` of the paper, section 3.1."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.head_activation]
        self.dropout = nn.Dropout(config.dropout if config.head_dropout is None else config.head_dropout)
        self.drops_input = config.head_drops_input
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float32 [b, s, H] -> logits float32 [b, classes]."""
        first = hidden_states[:, 0]
        pooled = self.activation(self.pooler(self.dropout(first) if self.drops_input else first))
        return self.classifier(self.dropout(pooled)).float()  # for losses, under autocast too


class Classifier(nn.Module):
    """The plain model, every layer run: the teacher, and the full BERT every speedup is measured against."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.head = Head(config)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, keep_states: bool = False
    ) -> Output:
        """int64 [b, s] three times -> `Output`, with hidden states and attention maps where `keep_states`."""
        hidden = self.embeddings(input_ids, token_type_ids)
        bias = attention_bias(attention_mask, hidden.dtype)
        states, maps = [hidden], []
        for layer in self.layers:
            hidden, probabilities = layer(hidden, bias)
            if keep_states:
                states.append(hidden)
                maps.append(probabilities.mean(dim=1))
        return Output(self.head(hidden), states if keep_states else [], maps)

    def init_weights(self, std: float = 0.02) -> "Classifier":
        """BERT's own initialisation: normal weights, zero biases, unit norms."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        return self
