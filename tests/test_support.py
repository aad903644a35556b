"""What works together: every family, head, engine, precision and cut. `SUPPORT=write make support` writes the page, and
the test holds it against what this machine finds."""

import json
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from hadskip_export import build
from hadskip_export.data.problems import PROBLEM_TYPES, SCORES
from hadskip_export.exporters.targets import target_of
from hadskip_export.modeling.families import FAMILIES
from hadskip_export.runtime.engines import ENGINES, Cut
from hadskip_export.support.errors import EngineError
from tests.conftest import make_source, write_cut
from tests.families import MADE_OF, write_model

PAGE = Path(__file__).parent.parent / "docs" / "support.md"
WRITE = os.environ.get("SUPPORT") == "write"
LABELS = {kind: ("no", "yes") if "classification" in kind else ("LABEL_0",) for kind in PROBLEM_TYPES}
HEADS = {
    "single_label_classification": "One label of several",
    "multi_label_classification": "Several labels at once",
    "regression": "A number",
    "ranking": "The relevance of a document",
}
MOST_ANSWERS = 0.9
PASSED, UNVERIFIED = "passed", "unverified"
RESULTS = PAGE.parent.parent / "build" / "support"
HEAD = """# What works together

Every cell was found by a test: a small model of the family and head was built for the engine, in every cut, and held
against PyTorch. `make support` writes this page.

- `passed`: the pieces, the routes and the answers agree with PyTorch's, in every cut. Below fp32 nine in ten labels
  have to, for so small a model has many near their border. Scores of random weights are all but equal; below fp32
  their pieces are judged alone.
- `refused`: the command says why. `torch-cuda` has code of its own for BERT's layers alone.
- `unverified`: no machine of the test can run it. [Engines](engines.md) says what was run on GPUs.

`openvino` in bf16 needs a chip that has it, and is refused elsewhere.
"""
FOOT = """## What is refused by name

| what | why |
|---|---|
| ALBERT | all its layers are one, run again and again |
| MobileBERT | its layers are bottlenecks of four feed-forward networks |
| DeBERTa of versions 1 and 2 | other attention, and a convolution after the first layer |
| other architectures | nobody here computes them |
| token classification, question answering, several numbers at once | heads of another kind |
| quantised weights, adapters, pickled weights | `train` names the tensor or the file |
"""


def forms() -> Iterator[tuple[str, str, Cut]]:
    """Engine, precision and cut."""
    for engine in ENGINES:
        target = target_of(engine)
        yield from product([engine], target.precisions, target.cuts)


def outcome(bundle: Path, kind: str, engine: str, precision: str, cut: Cut) -> str:
    """What became of building it here."""
    try:
        report = build(bundle, engine=engine, precision=precision, cut=cut)
    except EngineError as error:
        return f"refused: {error}" if "has no code for" in str(error) else UNVERIFIED  # or not to be had here
    if report is None:
        return UNVERIFIED
    answers_alone = precision != "fp32" and (report.first_bad_piece or "").startswith("labels")
    enough = kind in SCORES or report.label_agreement >= MOST_ANSWERS
    return PASSED if answers_alone and enough else report.parity


def outcomes(family: str, kind: str, model_folder: Path, folder: Path) -> dict[tuple[str, str, Cut], str]:
    model = write_model(family, folder / "model") if family in MADE_OF else model_folder
    source = make_source(model, folder, layers=2, labels=LABELS[kind], problem_type=kind)
    bundle = write_cut(source, folder, "gates")
    return {form: PASSED if form == ("ort", "fp32", "gates") else outcome(bundle, kind, *form) for form in forms()}


def cell(found: dict[tuple[str, str, Cut], str], engine: str, precision: str) -> str:
    """Of all cuts together where they came to the same, else each with its own."""
    said = {cut: found[engine, precision, cut].partition(":")[0] for cut in target_of(engine).cuts}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return ", ".join(f"{cut} {result}" for cut, result in said.items())


def rows() -> list[tuple[str, str]]:
    return [(engine, precision) for engine in ENGINES for precision in target_of(engine).precisions]


def page(found: dict[tuple[str, str], dict[tuple[str, str, Cut], str]]) -> str:
    """Of what each head and family came to."""
    written = [HEAD]
    for kind in PROBLEM_TYPES:
        written += [f"## {HEADS[kind]}", "", f"`problem_type` is `{kind}`.", ""]
        written += [f"| engine | {' | '.join(FAMILIES)} |", "|---" * (1 + len(FAMILIES)) + "|"]
        for engine, precision in rows():
            cells = (cell(found[kind, family], engine, precision) for family in FAMILIES)
            written.append(f"| `{engine}` {precision} | {' | '.join(cells)} |")
        written.append("")
    return "\n".join([*written, FOOT])


def cells_of(kind: str) -> dict[tuple[str, str, str], str]:
    """What the page says of a head: engine, precision, family -> cell."""
    part = PAGE.read_text().partition(f"`{kind}`.")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    header, *body = lines
    return {
        (*name.replace("`", "").split(" "), family): cell_
        for name, *cells in body
        for family, cell_ in zip(header[1:], cells, strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROBLEM_TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_says_what_this_machine_finds(family: str, kind: str, model_folder: Path, tmp_path: Path):
    found = outcomes(family, kind, model_folder, tmp_path)
    assert set(found.values()) & {PASSED} and "failed" not in found.values(), found
    if WRITE:
        RESULTS.mkdir(parents=True, exist_ok=True)
        plain = [[*form, result] for form, result in found.items()]
        (RESULTS / f"{family}.{kind}.json").write_text(json.dumps(plain))
        return
    said = cells_of(kind)
    for engine, precision in rows():
        here = cell(found, engine, precision)
        assert UNVERIFIED in here or said[engine, precision, family] == here, (engine, precision)


def test_the_page_has_a_cell_for_everything():
    for kind in PROBLEM_TYPES:
        said = cells_of(kind)
        assert set(said) == {(*row, family) for row in rows() for family in FAMILIES}
        words = {word for one in said.values() for word in one.replace(",", "").split()}
        assert words <= {"passed", "refused", "unverified", "gates", "layers", "whole"}
        assert all(said["ort", "fp32", family] == PASSED for family in FAMILIES)


if __name__ == "__main__":
    every = {}
    for kind_, family_ in product(PROBLEM_TYPES, FAMILIES):
        plain_ = json.loads((RESULTS / f"{family_}.{kind_}.json").read_text())
        every[kind_, family_] = {(engine, precision, cut): result for engine, precision, cut, result in plain_}
    PAGE.write_text(page(every))
