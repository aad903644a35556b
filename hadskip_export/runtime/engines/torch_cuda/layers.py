"""The model's arithmetic in PyTorch, on weights by name: what the engine `torch-cuda` records on the device.

The layer is `modeling.encoder.Layer` for inference alone, with the library's fused attention. Gates are computed in
fp32 whatever the layers are.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hadskip_export.runtime.engines.torch_cuda import takes

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {name: getattr(F, name) for name in takes.ACTIVATIONS}


@dataclass(frozen=True)
class Part:
    """One piece's weights, by the names in its file, and what they do not tell.

    Args:
        eps: of the layers' normalisations.
    """

    weights: Mapping[str, Tensor]
    num_heads: int
    eps: float
    activation: str

    def linear(self, name: str, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, inputs: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.layer_norm(inputs, weight.shape, weight, self.weights[f"{name}.bias"], self.eps)


def embeddings(part: Part, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
    """int64 [b, s] twice -> hidden_states float32 [b, s, H]."""
    tables = part.weights
    positions = tables["position.weight"][: input_ids.shape[1]]
    words = F.embedding(input_ids, tables["word.weight"])
    return part.norm("norm", words + positions + F.embedding(token_type_ids, tables["segment.weight"]))


def attention_bias(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """int64 [b, s] -> what is added to attention's scores, [b, 1, 1, s]: 0 or very negative."""
    return (1 - attention_mask[:, None, None, :]).to(dtype) * torch.finfo(dtype).min


# The normalisation of that name in a part, of a sum.
AddNorm = Callable[[Part, str, Tensor, Tensor], Tensor]


def layer(part: Part, hidden_states: Tensor, bias: Tensor, add_norm: AddNorm, *, last: bool) -> Tensor:
    """hidden_states [b, s, H] and what `attention_bias` gives -> hidden_states, all in the layers' precision.

    Args:
        last: no layer comes after it: what it gives is [b, 1, H], for the head reads the first token alone.
    """
    context = attention(part, hidden_states, bias, last=last)
    return add_norm(part, "output_norm", *sublayers(part, hidden_states, context, add_norm))


def attention(part: Part, hidden_states: Tensor, bias: Tensor, *, last: bool) -> Tensor:
    """What the heads see, side by side, [b, s, H]; in the last layer the first token's, [b, 1, H]."""
    b, _, H = hidden_states.shape  # noqa: N806 (the paper's letters)

    def heads(projected: Tensor, parts: int) -> Tensor:
        return projected.view(b, -1, parts, part.num_heads, H // part.num_heads).permute(2, 0, 3, 1, 4)

    if last:
        weight, biases = part.weights["query_key_value.weight"], part.weights["query_key_value.bias"]
        (query,) = heads(F.linear(hidden_states[:, 0], weight[:H], biases[:H]), 1)
        key, value = heads(F.linear(hidden_states, weight[H:], biases[H:]), 2)
    else:
        query, key, value = heads(part.linear("query_key_value", hidden_states), 3)
    scale = 1 / math.sqrt(H // part.num_heads)
    context = F.scaled_dot_product_attention(query, key, value, bias, scale=scale)
    return context.transpose(1, 2).reshape(b, -1, H)


def sublayers(part: Part, hidden_states: Tensor, context: Tensor, add_norm: AddNorm) -> tuple[Tensor, Tensor]:
    """What `layer` adds up and normalises last, of the tokens that `context` is of: what attention gave, and the
    feed-forward part of it."""
    asking = hidden_states[:, : context.shape[1]]
    attended = add_norm(part, "attention_norm", asking, part.linear("attention_output", context))
    return attended, part.linear("down", ACTIVATIONS[part.activation](part.linear("up", attended)))


def margins(part: Part, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
    """What gates make of hidden_states float32 [b, s, H] and the mask int64 [b, s]: margins float32 [b, gates]."""
    mask = attention_mask.float()
    mean = (mask[:, None] @ hidden_states)[:, 0] / mask.sum(dim=1, keepdim=True)
    pooled = F.layer_norm(mean, mean.shape[-1:])
    return part.linear("margins", torch.tanh(part.linear("hidden", pooled)))


def logits(part: Part, hidden_states: Tensor) -> Tensor:
    """hidden_states float32 [b, s, H] -> logits float32 [b, classes]."""
    return part.linear("classifier", torch.tanh(part.linear("pooler", hidden_states[:, 0])))
