"""`validate`: a bundle on the machine it will serve on, without torch."""

from dataclasses import dataclass
from pathlib import Path

from hadskip_export.data.columns import Columns, check_used
from hadskip_export.data.examples import read_examples
from hadskip_export.exporters.amend import settled
from hadskip_export.runtime.bundle import read_bundle
from hadskip_export.runtime.engines import Cut
from hadskip_export.runtime.predictor import LoadOptions, Predictor
from hadskip_export.runtime.signatures import check_signature
from hadskip_export.verification.golden import GoldenCheck, check_golden, read_golden
from hadskip_export.verification.labels import DataCheck, check_data
from hadskip_export.verification.parity import ParityReport, compare
from hadskip_export.verification.references import OnnxReference


@dataclass(frozen=True)
class Validation:
    """What `validate` found.

    Args:
        passed: golden answers and parity, and no mark of a check that failed before; what labelled data show is not
            judged.
        failed_at: where the check failed for which the bundle has the engine marked, so that `Predictor.load` refuses
            it, see `ParityReport.first_bad_piece`; None if it is not marked.
    """

    passed: bool
    failed_at: str | None
    golden: GoldenCheck
    parity: ParityReport
    data: DataCheck | None


def validate(
    bundle: str | Path,
    *,
    engine: str | None = None,
    precision: str | None = None,
    cut: Cut | None = None,
    data: str | Path | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    verify: str | Path | None = None,
) -> Validation:
    """Checks an engine of a bundle against its golden files and, piece by piece, against the ONNX pieces run plainly.
    The parity of one that was built where it cannot run is settled first, for good.

    Args:
        engine, precision, cut: which of the bundle's engines, see `Predictor.load`.
        data: labelled texts to compare on instead of the golden ones, and to say how well the bundle does on.
        verify: a public key whose holder must have signed the bundle, see `Predictor.load`.

    Raises:
        BundleError: see `read_bundle`, `check_signature` and `settled`; an engine that is marked as failed is checked
            all the same.
        DataError: see `read_examples`; a label the model does not know.
    """
    columns = Columns(text_column, pair_column, label_column)
    check_used(columns, data is not None)
    opened = read_bundle(bundle)
    if verify is not None:
        check_signature(opened, verify)
    name = opened.engine(engine, precision, cut).name
    with Predictor(settled(opened, name), LoadOptions(name, allow_failed=True)) as predictor:
        golden = read_golden(predictor.bundle)
        examples = None
        if data is not None:
            examples = read_examples(data, columns, predictor.problem)
        check = check_golden(predictor, golden)
        texts = golden.texts if examples is None else examples.texts
        report = compare(OnnxReference(predictor.bundle), predictor, predictor.tokenizer.encode(texts))
        labelled = None if examples is None else check_data(predictor, examples)
        info = predictor.engine_info
        failed_at = (info.first_bad_piece or "an unnamed piece") if info.parity == "failed" else None
        passed = check.passed and report.parity == "passed" and failed_at is None
        return Validation(passed, failed_at, check, report, labelled)
