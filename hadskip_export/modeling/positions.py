"""How attention knows where tokens are, where their embeddings do not tell: by rotation, in a window, by distance.

Shapes as in encoder.py; `t` of the `s` tokens, the first ones, ask.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Rotary(nn.Module):
    """Turns each pair of a head's numbers by an angle that grows with the position (Su et al., 2021, RoFormer)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, base: float, max_positions: int, width: int):
        super().__init__()
        for name, table in zip(("cos", "sin"), _angles(base, max_positions, width), strict=True):
            self.register_buffer(name, table, persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """float32 [b, N, s, H / N], both."""
        positions = torch.arange(states.shape[2], device=states.device)
        cos, sin = (F.embedding(positions, table).to(states.dtype) for table in (self.cos, self.sin))
        first, second = states.chunk(2, dim=-1)
        return states * cos + torch.cat((-second, first), dim=-1) * sin


@cache
def _angles(base: float, max_positions: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 [max_positions, width], the same tensors for all layers of a model."""
    frequencies = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float, device="cpu") / width)
    angles = torch.arange(max_positions, dtype=torch.float, device="cpu")[:, None] * frequencies
    both = torch.cat((angles, angles), dim=-1)
    return both.cos(), both.sin()


def window_bias(queries: int, keys: int, window: int, like: Tensor) -> Tensor:
    """What hides tokens more than `window` away from each of the first ones, [queries, keys]: 0 or very negative."""
    places = torch.arange(keys, device=like.device)
    far = (places[:queries, None] - places[None]).abs() > window
    # Chosen, not multiplied: an engine that computes in less may make it infinite, and 0 times that is no number.
    return torch.where(far, torch.finfo(like.dtype).min, 0.0).to(like.dtype)


class Distances(nn.Module):
    """The embeddings of how far apart two tokens are, which all layers share (He et al., 2021, DeBERTa, section 3.1).

    Args:
        buckets: distances to either side that have an embedding; None in a model that has none.
    """

    def __init__(self, buckets: int | None, hidden_size: int, layer_norm_eps: float):
        super().__init__()
        self.embedding = None if buckets is None else nn.Embedding(2 * buckets, hidden_size)
        self.norm = None if buckets is None else nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    def forward(self) -> Tensor | None:
        """float32 [2 buckets, H], or None."""
        return None if self.embedding is None or self.norm is None else self.norm(self.embedding.weight)


class DistanceScores(nn.Module):
    """What attention adds for a distance: a token's query times the distance's key, and its key times its query.

    A bucket depends on the difference of two positions alone. So each token is multiplied with the distances there
    are, not with each other token's, and the products are moved into place row by row; the original gathers every
    number from where it is.

    Args:
        buckets: see `Distances`. The nearer half are of one distance each, the others of ever more.
        most: the distance from which on the last bucket is all there is.
        max_positions: tokens that an input may have.
    """

    buckets: Tensor

    def __init__(self, buckets: int, most: int, max_positions: int):
        super().__init__()
        self.max_positions = max_positions
        self.register_buffer("buckets", _buckets(buckets, most, max_positions), persistent=False)

    def forward(self, query: Tensor, key: Tensor, of_distances: tuple[Tensor, Tensor]) -> Tensor:
        """
        Args:
            query: float32 [b, N, t, H / N].
            key: float32 [b, N, s, H / N].
            of_distances: their queries and their keys, float32 [2 buckets, H].

        Returns:
            float32 [b, N, t, s].
        """
        t, s = query.shape[2], key.shape[2]
        queries, keys = of_distances
        steps = torch.arange(t + s, device=query.device)
        places = (t - 1 - steps, steps - s + 1)
        falling, rising = (self.buckets.index_select(0, self.max_positions + place) for place in places)
        by_query = query @ self._heads(F.embedding(falling, keys), query.shape[1])  # [b, N, t, t + s]
        by_key = key @ self._heads(F.embedding(rising, queries), query.shape[1])  # [b, N, s, t + s]
        return in_place(by_query, s) + in_place(by_key, t).transpose(-1, -2)

    @staticmethod
    def _heads(table: Tensor, num_heads: int) -> Tensor:
        """[n, H] -> [N, H / N, n]."""
        return table.unflatten(-1, (num_heads, -1)).permute(1, 2, 0)


def in_place(products: Tensor, columns: int) -> Tensor:
    """[..., r, r + c] -> [..., r, c]: at row i and column j what row i has at r - 1 + j - i. Read as one line, in rows
    that are one shorter, it is all in its column (Dai et al., 2019, Transformer-XL, appendix B)."""
    rows = products.shape[-2]
    width = rows + columns - 1
    line = products.flatten(-2)[..., rows - 1 : rows - 1 + rows * width]
    return line.unflatten(-1, (rows, width))[..., :columns]


@cache
def _buckets(buckets: int, most: int, max_positions: int) -> Tensor:
    """Of each distance from `-max_positions` to `max_positions` (position of the query less that of the key), its row
    among the embeddings, int64. In float32, as the original has it: of a distance at a border, it decides which."""
    distances = torch.arange(-max_positions, max_positions + 1, device="cpu")
    half = buckets // 2
    far = distances.abs().clamp(min=max(half, 1)).float()
    share = torch.log(far / half) / torch.log(torch.tensor((most - 1) / half, device="cpu"))
    logarithmic = distances.sign() * (torch.ceil(share * (half - 1)) + half)
    found = torch.where(distances.abs() <= half, distances.float(), logarithmic).long()
    return (found + buckets).clamp(0, 2 * buckets - 1)
