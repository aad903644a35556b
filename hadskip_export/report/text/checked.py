"""Whether a bundle answers as it should."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hadskip_export.support.words import counted

if TYPE_CHECKING:
    from hadskip_export.commands.validate import Validation
    from hadskip_export.verification.golden import GoldenCheck
    from hadskip_export.verification.labels import ClassScore, DataCheck
    from hadskip_export.verification.parity import ParityReport

MOST_FLIPS = 10  # listed; the others are counted


def parity(report: ParityReport) -> list[str]:
    """An engine beside its reference: a row per piece, then end to end, then the verdict."""
    lines = [
        f"{report.engine}-{report.precision}-{report.cut} against {report.reference}, {counted(report.texts, 'text')}"
    ]
    lines += [
        f"  {piece.piece:<17} largest {piece.largest:.1e}  mean {piece.mean:.1e}  tolerance {piece.tolerance:.0e}"
        f"{'' if piece.judged == 'largest' else ' of the mean'}{'' if piece.passed else '  FAILED'}"
        for piece in report.pieces
    ]
    lines.append(
        f"  end to end: routes agree {report.route_agreement:.2%} ({counted(report.flips, 'flip')} not in a near tie),"
        f" labels agree {report.label_agreement:.2%}, logits differ by at most {report.logits_largest:.1e}"
    )
    if report.full_label_agreement is not None and report.precision != "fp32":
        lines.append(f"  full BERT in {report.precision}: labels agree {report.full_label_agreement:.2%} with its fp32")
    verdict = "passed" if report.first_bad_piece is None else f"FAILED at {report.first_bad_piece}"
    return [*lines, f"  parity {verdict}"]


def golden(check: GoldenCheck) -> str:
    """How far an engine is from the answers recorded at the build."""
    return (
        f"{counted(check.texts, 'text')}, {counted(check.flips, 'flip')}, logits differ by at most"
        f" {check.logits_largest:.1e}, tolerance {check.logits_tolerance:.0e}"
        f"{'' if check.labels_agree else ', labels other than when it was built'}"
    )


def validation(found: Validation) -> list[str]:
    """Golden answers, parity and, where there was labelled data, what the bundle does with it."""
    verdict = "passed" if found.golden.passed else "FAILED"
    labelled = [] if found.data is None else labelled_data(found.data)
    return [f"golden: {golden(found.golden)} ({verdict})", *parity(found.parity), *_marked(found), *labelled]


def _marked(found: Validation) -> list[str]:
    if found.failed_at is None:
        return []
    here = "; the texts compared on here do not show it" if found.parity.parity == "passed" else ""
    return [
        f"  FAILED at {found.failed_at} when it was built, and is marked so: predict and Predictor.load refuse it"
        f"{here}",
        "  build another precision, or load it all the same with allow_failed=True",
    ]


def labelled_data(check: DataCheck) -> list[str]:
    """The metric, a row per label, and the first of the inputs whose label is no longer full BERT's."""
    reached = f"{check.metric} {check.value:.4f} at {check.routes.mean_layers:.2f} layers"
    lines = [f"data: {counted(check.texts, 'text')}, {reached}"]
    if check.full_value is not None:
        lines.append(f"  full BERT {check.full_value:.4f}; {_agreement(check)}")
    if check.classes:
        lines += _per_label(check)
    if check.flips is None:
        return lines
    lines.append(
        f"  labels that differ from full BERT's: {len(check.flips)}, {check.better} for the better,"
        f" {check.worse} for the worse"
    )
    lines += [
        f"    line {flip.line}: {flip.full} -> {flip.gates}, truly {flip.expected}: {flip.text}"
        for flip in check.flips[:MOST_FLIPS]
    ]
    if len(check.flips) > MOST_FLIPS:
        lines.append(f"    and {len(check.flips) - MOST_FLIPS} more; --json FILE has them all")
    return lines


def _agreement(check: DataCheck) -> str:
    if check.classes:
        return f"the same answer for {check.label_agreement:.2%}"
    return f"the two correlate at {check.label_agreement:.4f}"


def _per_label(check: DataCheck) -> list[str]:
    width = max(len("label"), *(len(score.label) for score in check.classes))
    rows = [f"  {'label':<{width}}  support  precision  recall     F1"]
    rows += [f"  {score.label:<{width}}  {score.support:>7}  {_score(score)}" for score in check.classes]
    if check.full_classes is not None:
        rows[0] += "  full BERT: precision  recall     F1"
        full = ["             " + _score(score) for score in check.full_classes]
        rows[1:] = map(str.__add__, rows[1:], full)
    return rows


def _score(score: ClassScore) -> str:
    shown = ("-" if value is None else f"{value:.3f}" for value in (score.precision, score.recall, score.f1))
    return "{:>9}  {:>6}  {:>5}".format(*shown)
