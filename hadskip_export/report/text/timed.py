"""How long calls take, beside full BERT and beside other systems."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hadskip_export.support.words import counted

if TYPE_CHECKING:
    from hadskip_export.benchmark.measure import Figures
    from hadskip_export.commands.bench import Benchmark, Row
    from hadskip_export.commands.estimate import Estimate

MADE_UP = "made-up texts (the bundle's golden inputs)"
YOURS_DIFFER = "your texts run more layers or fewer, and are as much slower or faster; give --data FILE to time them"
OVER_ALL = (
    "  over 100%: the ideal is made of pieces timed one by one, which each cost a call of their own; take it for 100%"
)


def benchmark(result: Benchmark) -> list[str]:
    """A block per batch size, with an empty line between two."""
    lines: list[str] = []
    for row in result.rows:
        lines += [*([""] if lines else []), *bench_row(row)]
    return [*lines, *([] if not result.peers else ["", *_peers(result)])]


def _peers(result: Benchmark) -> list[str]:
    """The bundle beside what could be run instead, and how much faster it is than the fastest that is as good."""
    metric, peers, rival = result.rows[0].metric_name, result.peers, result.rival
    wide = max(len(peer.name) for peer in peers)
    lines = [
        f"{'':<{wide}} {metric[:10]:>10} {'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8} {'texts/s':>8} {'disk MB':>8}"
        f" {'memory MB':>10}  engine",
        *(
            f"{peer.name:<{wide}} {peer.metric:>10.4f} {peer.p50:>8.2f} {peer.p90:>8.2f} {peer.p99:>8.2f}"
            f" {peer.throughput:>8.0f} {peer.disk_mb:>8.1f} {peer.memory_mb:>10.0f}  {peer.engine}"
            for peer in peers
        ),
    ]
    if rival is None:
        return [*lines, f"none of the others has as good a {metric}"]
    times = f"{rival.p50 / peers[0].p50:.2f} times"
    return [*lines, f"{rival.name}, the fastest of those that are as good or better, takes {times} as long"]


def bench_row(row: Row) -> list[str]:
    """Full BERT and the gated model beside each other, the speedup, and what to distrust. Of made-up texts neither the
    layers that they run nor what follows from them."""
    quality, layers, name = ["", "", ""], ["", "", ""], f"{row.engine}-{row.precision}-{row.cut}"
    if row.metric is not None:
        quality = [f" {row.metric_name:>10}", f" {row.full_metric:>10.4f}", f" {row.metric:>10.4f}"]
    if row.data is not None:
        layers = [f" {'layers':>7}", f" {row.layers:>7.2f}", f" {row.mean_layers:>7.2f}"]
    texts = MADE_UP if row.data is None else f"texts of {row.data}"
    return [
        f"{name}, batch {row.batch}, {row.seq:.0f} tokens per input on average, {texts}",
        f"{'':<12}{layers[0]} {'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8}{quality[0]}",
        f"{'full BERT':<12}{layers[1]} {row.full_p50_ms:>8.2f} {row.full_p90_ms:>8.2f} {row.full_p99_ms:>8.2f}"
        f"{quality[1]}",
        f"{'hadskip':<12}{layers[2]} {row.p50:>8.2f} {row.p90:>8.2f} {row.p99:>8.2f}{quality[2]}",
        f"speedup {row.speedup:.2f}x (95 % interval {row.speedup_low:.2f} to {row.speedup_high:.2f}), full BERT's"
        f" threads {row.full_setting.removeprefix('full, threads ')}",
        *([YOURS_DIFFER] if row.data is None else _of_their_layers(row)),
        *(f"do not trust this: {warning}" for warning in row.warnings),
        *([] if row.hint is None else [f"to make it faster: {row.hint}"]),
        *([] if row.profile is None else _profile(row.profile)),
    ]


def _of_their_layers(row: Row) -> list[str]:
    """What the layers that the user's own texts run make possible, and how they are spread."""
    ran = ", ".join(f"{count}: {share:.0%}" for count, share in enumerate(row.histogram) if share)
    lines = [f"layers run by share of inputs: {ran}"]
    if row.ideal is None or row.efficiency is None:
        return lines
    ideal = f"ideal {row.ideal:.2f}x at {row.layers_run:.2f} layers run, efficiency {row.efficiency:.0%}"
    return [*([f"{ideal}"]), *([OVER_ALL] if row.efficiency > 1 else []), *lines]


def _profile(parts: dict[str, float]) -> list[str]:
    total = sum(parts.values())
    rows = [f"  {part:<12} {ms:>8.3f} ms {ms / total:>6.1%}" for part, ms in parts.items()]
    return ["where a call's time goes, on average:", *rows]


def estimate(result: Estimate) -> list[str]:
    """A row per workload, then what to distrust."""
    first = result.rows[0]
    return [
        f"{first.engine}-{first.precision}-{first.cut}, random weights, {first.layers_run:g} of"
        f" {counted(first.layers, 'layer')} run, what decides overruled; full BERT in {first.full_engine}",
        f"{'tokens':>6} {'batch':>5} {'layers':>6} {'full p50':>10} {'skip p50':>10} {'skip p99':>10}  "
        f"{'speedup':<20} {'ideal':>5} {'efficiency':>10}",
        *map(_estimated, result.rows),
        *([OVER_ALL] if any((row.efficiency or 0) > 1 for row in result.rows) else []),
        *(f"do not trust {row.seq:.0f} x {row.batch}: {warning}" for row in result.rows for warning in row.warnings),
    ]


def _estimated(row: Figures) -> str:
    line = (
        f"{row.seq:>6.0f} {row.batch:>5} {row.routing:>6} {row.full_p50_ms:>7.2f} ms {row.p50:>7.2f} ms"
        f" {row.p99:>7.2f} ms  {row.speedup:.2f} ({row.speedup_low:.2f} to {row.speedup_high:.2f})"
    )
    return line if row.ideal is None else f"{line}  {row.ideal:>5.2f} {row.efficiency:>10.1%}"
