"""Results as lines for a person: what each command prints of the dataclass that its function returns.

Those classes are imported for types alone: a machine that serves has no torch, which some of their modules bring.
"""

from hadskip_export.report.text.checked import golden, labelled_data, parity, validation
from hadskip_export.report.text.chosen import calibration, optimization
from hadskip_export.report.text.found import demo, diagnosis, inspection, scored
from hadskip_export.report.text.timed import bench_row, benchmark, estimate
from hadskip_export.report.text.trained import comparison, training

__all__ = [
    "bench_row",
    "benchmark",
    "calibration",
    "comparison",
    "demo",
    "diagnosis",
    "estimate",
    "golden",
    "inspection",
    "labelled_data",
    "optimization",
    "parity",
    "scored",
    "training",
    "validation",
]
