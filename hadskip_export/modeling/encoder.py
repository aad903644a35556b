"""A BERT-type classifier: embeddings, transformer layers, head.

What one family of encoders has and another has not is a value of `EncoderConfig` (families/ tells which). The parts are
what the exporter cuts into pieces, so each is a module with plain tensors in and out. Shapes use `b` batch, `s` length
in tokens, `H` hidden size, `N` heads. Oracle: `transformers` (tests/modeling).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hadskip_export.data.problems import SINGLE, ProblemType
from hadskip_export.modeling.positions import Distances, DistanceScores, Rotary, window_bias


def _tanh_gelu(inputs: Tensor) -> Tensor:
    return F.gelu(inputs, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_python": F.gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


Pooling = Literal["cls", "mean"]


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and variants of a BERT-type classifier. `num_layers` is the L of the paper.

    Args:
        max_positions: tokens that have a position, as an embedding or by rotation.
        type_vocab_size: segments that have an embedding; with one or none, the model is not told any.
        problem_type: what the logits answer.
        dropout: after what attention and the feed-forward give; of a gated one before its last map.
        family: a name in `families.FAMILIES`.
        embedding_size: of the embeddings where they are projected to `hidden_size` afterwards.
        padding_id: where positions count the tokens that are not this one, and begin after it; elsewhere they count all
            tokens, from 0.
        embedding_dropout, attention_output_dropout: `dropout` if left out.
        pre_norm: attention and the feed-forward read normalised states and add to states that are not (the first
            attention to those of the embeddings, which are); the head normalises what the last layer gives.
        gated: the feed-forward has twice the units, and half of them, activated, weigh the other half (GeGLU).
        attention_bias, feed_forward_bias, norm_bias, pooler_bias: whether these have any.
        absolute_positions: the embeddings have a part for the position.
        rotary_bases: of each layer, whose queries and keys are turned by their positions.
        windows: of each layer, how far to either side a token sees; None: all of them.
        distance_buckets: attention knows distances, in so many groups to either side (`DistanceScores`).
        most_distance: the one from which on all are alike.
        pooling: what the head reads, the first token (`cls`) or the mean of all.
        head_norm: the head normalises between its two linear maps.
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
    problem_type: ProblemType = SINGLE
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
    embedding_dropout: float | None = None
    attention_output_dropout: float | None = None
    pre_norm: bool = False
    gated: bool = False
    attention_bias: bool = True
    feed_forward_bias: bool = True
    norm_bias: bool = True
    pooler_bias: bool = True
    absolute_positions: bool = True
    rotary_bases: tuple[float, ...] | None = None
    windows: tuple[int | None, ...] | None = None
    distance_buckets: int | None = None
    most_distance: int = 0
    pooling: Pooling = "cls"
    head_norm: bool = False

    @property
    def has_segments(self) -> bool:
        """Whether the model tells any apart."""
        return self.type_vocab_size > 1

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


def _dropout(config: EncoderConfig, own: float | None) -> nn.Dropout:
    return nn.Dropout(config.dropout if own is None else own)


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
        self.position = nn.Embedding(config.max_positions, width) if config.absolute_positions else None
        self.segment = nn.Embedding(config.type_vocab_size, width) if config.type_vocab_size else None
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps, bias=config.norm_bias)
        self.dropout = _dropout(config, config.embedding_dropout)
        self.projection = nn.Linear(width, config.hidden_size) if config.projects_embeddings else None

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """int64 [b, s] twice -> float32 [b, s, H]. A model without segments is not asked for them, and ignores them."""
        embedded = self.word(input_ids)
        if self.position is not None:
            embedded = embedded + self.position(self._positions(input_ids))
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
    """One transformer layer, `f_i` of the paper: attention and feed-forward, each added and normalised."""

    def __init__(self, config: EncoderConfig, index: int = 0):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        norm = {"eps": config.layer_norm_eps, "bias": config.norm_bias}
        self.num_heads, self.pre_norm, self.gated = config.num_heads, config.pre_norm, config.gated
        self.window = config.windows[index] if config.windows else None
        self.base = config.rotary_bases[index] if config.rotary_bases else None
        self.rotary = Rotary(self.base, config.max_positions, hidden // config.num_heads) if self.base else None
        self.distances = None
        if config.distance_buckets:
            self.distances = DistanceScores(config.distance_buckets, config.most_distance, config.max_positions)
        self.query_key_value = nn.Linear(hidden, 3 * hidden, bias=config.attention_bias)
        self.attention_output = nn.Linear(hidden, hidden, bias=config.attention_bias)
        reads_normed = config.pre_norm and index == 0
        self.attention_norm = nn.Identity() if reads_normed else nn.LayerNorm(hidden, **norm)
        self.up = nn.Linear(hidden, 2 * inner if config.gated else inner, bias=config.feed_forward_bias)
        self.down = nn.Linear(inner, hidden, bias=config.feed_forward_bias)
        self.output_norm = nn.LayerNorm(hidden, **norm)  # with `pre_norm` before the feed-forward
        self.activation = ACTIVATIONS[config.activation]
        self.distance_dropout = nn.Dropout(config.dropout)
        self.attention_dropout = nn.Dropout(config.attention_dropout)
        self.attention_output_dropout = _dropout(config, config.attention_output_dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor, bias: Tensor, distances: Tensor | None) -> tuple[Tensor, Tensor]:
        """
        Args:
            hidden_states: float32 [b, s, H].
            bias: what `attention_bias` gives, [b, 1, 1, s].
            distances: what the model's `Distances` give.

        Returns:
            The new hidden states, float32 [b, s, H], and the attention probabilities, float32 [b, N, s, s].
        """
        query, key, value = self.heads(self.query_key_value(self.read(hidden_states)), 3)
        of_distances = None if distances is None else self.of_distances(self.distance_dropout(distances))
        return self.attend(hidden_states, (query, key, value), bias, of_distances)

    def read(self, hidden_states: Tensor) -> Tensor:
        """What the attention reads."""
        return self.attention_norm(hidden_states) if self.pre_norm else hidden_states

    def heads(self, projected: Tensor, parts: int) -> Tensor:
        """Several projections side by side, [b, s, parts H] -> [parts, b, N, s, H / N]."""
        b, s, width = projected.shape
        return projected.view(b, s, parts, self.num_heads, width // parts // self.num_heads).permute(2, 0, 3, 1, 4)

    def of_distances(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Their queries and their keys in this layer, float32 [2 buckets, H]."""
        both, projection = 2 * distances.shape[1], self.query_key_value
        query, key = F.linear(distances, projection.weight[:both], projection.bias[:both]).chunk(2, dim=-1)
        return query, key

    def attend(
        self,
        hidden_states: Tensor,
        query_key_value: tuple[Tensor, Tensor, Tensor],
        bias: Tensor,
        of_distances: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """The rest of the layer, for as many tokens, the first ones, as there are queries.

        Args:
            hidden_states: of the tokens that ask, float32 [b, t, H].
            query_key_value: float32 [b, N, t, H / N], and twice [b, N, s, H / N].
            of_distances: what the method of that name gives, where the model has distances.

        Returns:
            As `forward`: float32 [b, t, H] and [b, N, t, s].
        """
        query, key, value = query_key_value
        if self.rotary is not None:
            query, key = self.rotary(query), self.rotary(key)
        if self.window is not None:
            bias = torch.minimum(bias, window_bias(query.shape[2], key.shape[2], self.window, bias))
        scores, terms = query @ key.transpose(-1, -2), 1  # [b, N, t, s]
        if self.distances is not None and of_distances is not None:
            scores, terms = scores + self.distances(query, key, of_distances), 3
        scores = scores / math.sqrt(terms * query.shape[-1]) + bias
        probabilities = scores.softmax(dim=-1)
        context = self.attention_dropout(probabilities) @ value  # [b, N, t, H / N]
        context = context.transpose(1, 2).reshape(hidden_states.shape)
        attended = hidden_states + self.attention_output_dropout(self.attention_output(context))
        if self.pre_norm:
            return attended + self.feed_forward(self.output_norm(attended)), probabilities
        attended = self.attention_norm(attended)
        return self.output_norm(attended + self.feed_forward(attended)), probabilities

    def feed_forward(self, hidden_states: Tensor) -> Tensor:
        """float32 [b, t, H], both."""
        if not self.gated:
            return self.dropout(self.down(self.activation(self.up(hidden_states))))
        activated, weight = self.up(hidden_states).chunk(2, dim=-1)
        return self.down(self.dropout(self.activation(activated) * weight))


class Head(nn.Module):
    """Pooler and classifier: `f_out` of the paper, section 3.1."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        hidden, norm = config.hidden_size, {"eps": config.layer_norm_eps, "bias": config.norm_bias}
        self.pooling = config.pooling
        self.states_norm = nn.LayerNorm(hidden, **norm) if config.pre_norm else nn.Identity()
        self.pooler = nn.Linear(hidden, hidden, bias=config.pooler_bias)
        self.activation = ACTIVATIONS[config.head_activation]
        self.pooled_norm = nn.LayerNorm(hidden, **norm) if config.head_norm else nn.Identity()
        self.dropout = _dropout(config, config.head_dropout)
        self.drops_input = config.head_drops_input
        self.classifier = nn.Linear(hidden, len(config.labels))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """float32 [b, s, H], int64 [b, s], which the mean of all tokens needs -> logits float32 [b, classes]."""
        return self.classify(self.pool(hidden_states, attention_mask))

    def pool(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What the head reads, mapped: float32 [b, H]."""
        if self.pooling == "cls":
            read = self.states_norm(hidden_states[:, 0])
        else:
            assert attention_mask is not None
            mask = attention_mask.to(hidden_states.dtype)
            read = (mask[:, None] @ self.states_norm(hidden_states))[:, 0] / mask.sum(dim=1, keepdim=True)
        return self.pooled_norm(self.activation(self.pooler(self.dropout(read) if self.drops_input else read)))

    def classify(self, pooled: Tensor) -> Tensor:
        return self.classifier(self.dropout(pooled)).float()  # for losses, under autocast too


class Classifier(nn.Module):
    """The plain model, every layer run: the teacher, and the full BERT every speedup is measured against."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.distances = Distances(config.distance_buckets, config.hidden_size, config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_layers))
        self.head = Head(config)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, keep_states: bool = False
    ) -> Output:
        """int64 [b, s] three times -> `Output`, with hidden states and attention maps where `keep_states`."""
        hidden = self.embeddings(input_ids, token_type_ids)
        bias, distances = attention_bias(attention_mask, hidden.dtype), self.distances()
        states, maps = [hidden], []
        for layer in self.layers:
            hidden, probabilities = layer(hidden, bias, distances)
            if keep_states:
                states.append(hidden)
                maps.append(probabilities.mean(dim=1))
        return Output(self.head(hidden, attention_mask), states if keep_states else [], maps)

    def init_weights(self, std: float = 0.02) -> "Classifier":
        """BERT's own initialisation: normal weights, zero biases, unit norms."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        return self
