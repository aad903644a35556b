"""Texts shared out: nothing lost, nothing twice, queries whole; and files that read back as what was written."""

from pathlib import Path

import pytest

from hadskip_export.data.examples import Examples, read_examples
from hadskip_export.data.problems import MULTI, RANKING, REGRESSION, SINGLE
from hadskip_export.tuning.texts import digest_of, share_out, units_of, write_examples

SINGLES = Examples([f"text {row}" for row in range(50)], [str(row % 3) for row in range(50)])
QUERIES = Examples(
    [(f"query {row // 7}", f"document {row}") for row in range(70)], [row % 2 / 1 for row in range(70)], [], RANKING
)


@pytest.mark.parametrize("examples", [SINGLES, Examples(SINGLES.texts, [])])
@pytest.mark.parametrize("count", [1, 10, 22])
def test_every_text_is_on_one_side_with_its_label(examples: Examples, count: int):
    sides = share_out(examples, count, 0)
    rows = [list(zip(side.texts, side.labels or [None] * len(side), strict=True)) for side in sides]
    assert sorted(rows[0] + rows[1], key=str) == sorted(
        zip(examples.texts, examples.labels or [None] * len(examples), strict=True), key=str
    )
    assert len(sides[1]) == count and sides[0].problem_type == examples.problem_type


def test_documents_of_a_query_stay_together():
    learned, chosen = ({text[0] for text in side.texts} for side in share_out(QUERIES, 3, 3))
    assert len(chosen) == 3 and len(learned) == 7 and not learned & chosen


def test_a_text_that_comes_again_is_on_one_side_and_counts_once_where_it_is_chosen_on():
    again = Examples([f"text {row % 10}" for row in range(50)], [])
    learned, chosen = share_out(again, 4, 0)
    assert len(chosen) == len(set(chosen.texts)) == 4 and not {*learned.texts} & {*chosen.texts}
    assert len(learned) == 30 and len(set(units_of(again))) == 10


def test_another_seed_draws_others_and_the_same_the_same():
    assert share_out(SINGLES, 10, 0) == share_out(SINGLES, 10, 0)
    assert share_out(SINGLES, 10, 0)[1].texts != share_out(SINGLES, 10, 1)[1].texts


@pytest.mark.parametrize(
    ("texts", "labels", "kind"),
    [
        (["a\nb", 'say "hi"', "née ☃ \u2028 x 😀"], ["no", "0", "yes"], SINGLE),
        (["a", "b"], [("x", "y"), ()], MULTI),
        ([("a", "b"), ("c", "d")], [0.25, 1e-9], RANKING),
        (["a", "b"], [-3.5, 7.0], REGRESSION),
        (["a", "b"], [], SINGLE),
    ],
)
def test_what_is_written_reads_back(texts: list, labels: list, kind: str, tmp_path: Path):
    examples = Examples(texts, labels, [], kind)
    write_examples(tmp_path / "x.jsonl", examples)
    back = read_examples(tmp_path / "x.jsonl", problem_type=kind, unlabelled=True)
    assert (back.texts, list(back.labels), digest_of(back)) == (texts, labels, digest_of(examples))
