"""Positions by distance against loops, and against `transformers`' own grouping of distances."""

import pytest
import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from hadskip_export.modeling.positions import DistanceScores, in_place

# DeBERTa-v3, mDeBERTa with a longest input of its own, small ones, more groups than distances.
GROUPS = [(256, 512, 512), (256, 512, 700), (6, 24, 24), (5, 10, 24), (2, 8, 16), (60, 24, 24)]


@pytest.mark.parametrize(("buckets", "most", "positions"), GROUPS)
def test_a_distance_is_in_the_group_in_which_transformers_has_it(buckets: int, most: int, positions: int):
    places = torch.zeros(positions, 1)
    wanted = build_relative_position(places, places, buckets, most)[0].add(buckets).clamp(0, 2 * buckets - 1)
    steps = torch.arange(positions)
    got = DistanceScores(buckets, most, positions).buckets[positions + steps[:, None] - steps[None]]
    assert torch.equal(got, wanted)
    assert len(got.unique()) > 2


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (5, 1), (4, 4), (3, 7), (7, 3)])
def test_products_with_distances_move_to_where_their_tokens_are(rows: int, columns: int):
    products = torch.randn(2, rows, rows + columns)
    moved = in_place(products, columns)
    assert moved.shape == (2, rows, columns)
    for row in range(rows):
        for column in range(columns):
            assert torch.equal(moved[:, row, column], products[:, row, rows - 1 + column - row])


@pytest.mark.parametrize(("asking", "tokens"), [(1, 1), (1, 9), (9, 9), (24, 24)])
def test_the_scores_of_distances_are_those_of_a_loop(asking: int, tokens: int):
    torch.manual_seed(0)
    heads, width, buckets, positions = 2, 4, 5, 24
    query, key = torch.randn(3, heads, asking, width), torch.randn(3, heads, tokens, width)
    queries, keys = torch.randn(2, 2 * buckets, heads * width)
    scores = DistanceScores(buckets, 10, positions)
    got = scores(query, key, (queries, keys))
    for i in range(asking):
        for j in range(tokens):
            group = scores.buckets[positions + i - j]
            of_keys, of_queries = (table[group].view(heads, width) for table in (keys, queries))
            wanted = (query[:, :, i] * of_keys).sum(-1) + (key[:, :, j] * of_queries).sum(-1)
            torch.testing.assert_close(got[:, :, i, j], wanted)
