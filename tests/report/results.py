"""Results as commands return them, made by hand."""

from hadskip_export.commands.bench import Benchmark, Row

ROW = Row(
    engine="ort",
    precision="fp32",
    cut="gates",
    seq=20.0,
    batch=1,
    routing="data",
    layers=4,
    layers_run=3.0,
    last_run=0.5,
    embeddings_ms=0.1,
    layer_ms=1.0,
    last_layer_ms=0.5,
    head_ms=0.1,
    full_p50_ms=8.0,
    speedup=2.0,
    speedup_low=1.9,
    speedup_high=2.1,
    ideal=2.5,
    efficiency=0.8,
    p50=4.0,
    p90=4.5,
    p99=5.0,
    full_p90_ms=8.5,
    full_p99_ms=9.0,
    full_engine="ort-fp32-gates",
    full_setting="full, threads asleep",
    warnings=(),
    samples={"skip": [[0.004]], "full": [[0.008]]},
    data="dev.csv",
    metric_name="accuracy",
    metric=0.75,
    full_metric=0.8,
    mean_layers=3.0,
    histogram=(0.0, 0.0, 0.5, 0.0, 0.5),
    profile=None,
    hint=None,
)
BENCHMARK = Benchmark({"chip": "a chip"}, (ROW,))

BUDGET = {
    "budget": 2,
    "mean_layers": 2.0,
    "metric": 0.75,
    "retained": 0.9375,
    "divergence": 0.125,
    "routes": 3,
    "route_entropy_bits": 1.5,
    "top_route_share": 0.5,
    "top_route_metric": 0.7,
    "static_metric": 0.7,
}
SUMMARY = {
    "task": "t",
    "metric": "accuracy",
    "evaluated_on": "dev.csv",
    "layers": 4,
    "teacher": {"metric": 0.8},
    "budgets": [BUDGET],
}
