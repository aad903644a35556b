"""Memory levels off: thousands of calls of every length and number of inputs, as a service that runs for weeks has."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hadskip_export import build
from tests.conftest import BF16, needs_bf16

REDUCED = [("ort", "int8"), ("openvino", "int8"), ("openvino", "bf16")]
WARM_UP, CALLS, MOST_INPUTS, MOST_TOKENS = 1000, 500, 33, 32
# In a process of its own, which measures only itself. The largest call comes first: its scratch memory may stay.
SOAK = """
import json, sys
import numpy as np
from hadskip_export.runtime import Predictor
bundle, engine, warm_up, calls, most_inputs, most_tokens = *sys.argv[1:3], *map(int, sys.argv[3:])
random = np.random.default_rng(0)
shapes = set()
def call(predictor, inputs, tokens):
    shapes.add((inputs, tokens))
    predictor([{"input_ids": ids} for ids in random.integers(5, 60, (inputs, tokens)).tolist()], batch_size=inputs)
def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * 4096 / 1e6
with Predictor.load(bundle, engine=engine, threads=1, allow_failed=True) as predictor:
    call(predictor, most_inputs, most_tokens)
    found = []
    for number in (warm_up, calls):
        for _ in range(number):
            call(predictor, int(random.integers(1, most_inputs + 1)), int(random.integers(2, most_tokens + 1)))
        found.append(resident())
print(json.dumps({"resident": found, "shapes": len(shapes)}))
"""


@pytest.fixture(scope="module")
def every_cut(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = shutil.copytree(bundle, tmp_path_factory.mktemp("soak") / "bundle")
    for engine, cuts in (("ort", ("layers", "whole")), ("openvino", ("gates", "layers", "whole"))):
        for cut in cuts:
            assert build(out, engine=engine, cut=cut).parity == "passed"
    for engine, precision in REDUCED:
        if precision != "bf16" or BF16:
            build(out, engine=engine, precision=precision, cut="whole")
    return out


ENGINES = [f"{engine}-fp32-{cut}" for engine in ("ort", "openvino") for cut in ("gates", "layers", "whole")]
ENGINES += ["ort-int8-whole", "openvino-int8-whole"]


@pytest.mark.slow
@pytest.mark.xdist_group("soak")  # one worker builds it
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell")
@pytest.mark.parametrize("engine", [*ENGINES, pytest.param("openvino-bf16-whole", marks=needs_bf16)])
def test_memory_levels_off_whatever_the_shapes(every_cut: Path, engine: str):
    # In int8 each new shape costs some memory until nearly all of them have come.
    warm_up = WARM_UP if "fp32" in engine else 3 * WARM_UP
    numbers = map(str, (warm_up, CALLS, MOST_INPUTS, MOST_TOKENS))
    command = [sys.executable, "-c", SOAK, str(every_cut), engine, *numbers]
    done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    warm, after = done["resident"]
    assert done["shapes"] > 750
    assert after < 1.05 * warm, f"{warm:.0f} MB after {warm_up} calls, {after:.0f} MB after {CALLS} more"
