"""A BERT classifier on one page: embeddings, post-norm transformer layers, head.

Its parts are what the exporter cuts into pieces, so each is a module with plain tensors in and out. Shapes use
`b` batch, `s` length in tokens, `H` hidden size, `N` heads. Oracle: `transformers` (tests/modeling).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of a BERT-type classifier. `num_layers` is the L of the paper."""

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
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_positions, config.hidden_size)
        self.segment = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """int64 [b, s] twice -> float32 [b, s, H]."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        embedded = self.word(input_ids) + self.position(positions) + self.segment(token_type_ids)
        return self.dropout(self.norm(embedded))


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
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float32 [b, s, H] -> logits float32 [b, classes]."""
        pooled = self.dropout(torch.tanh(self.pooler(hidden_states[:, 0])))
        return self.classifier(pooled).float()  # for losses, under autocast too


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
