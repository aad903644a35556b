"""What `inspect` says about a bundle's router."""

from pathlib import Path

from hadskip_export import inspect


def router_line(bundle: Path) -> str:
    (line,) = (line for line in inspect(bundle)[1] if line.startswith("router:"))
    return line


def test_of_a_static_router_it_says_the_route_and_of_gates_budget_and_threshold(bundle: Path, static_bundle: Path):
    assert router_line(static_bundle) == "router: static, layers 1 3"
    assert router_line(bundle) == "router: gates, budget 2 of 4, threshold +0.0000 logits"


def test_plain_data_and_engine_line_tell_the_same(static_bundle: Path):
    plain, lines = inspect(static_bundle)
    assert (plain["router"]["kind"], plain["router"]["route"]) == ("static", (1, 3))
    assert any(line.startswith("engine ort-fp32: gates none, parity passed") for line in lines)
