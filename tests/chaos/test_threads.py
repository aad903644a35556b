"""64 threads that never stop calling while the bundle is closed and loaded anew under them."""

import threading
import time
from pathlib import Path

import psutil
import pytest

from hadskip_export.runtime import Predictor
from hadskip_export.support.errors import EngineError
from tests.chaos.conftest import MINUTES, TEXTS

pytestmark = pytest.mark.slow

THREADS = 64


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_nothing_is_lost_and_memory_stays(engine: str, bundle: Path, openvino_bundle: Path):
    place = bundle if engine == "ort" else openvino_bundle
    serving = [Predictor.load(place, engine=engine, threads=1)]
    expected = [serving[0](text) for text in TEXTS]  # one by one, for in a batch the last bits are others
    until, wrong, counts = time.monotonic() + MINUTES * 30, [], [0] * THREADS  # half of the time for each engine

    def ask(number: int) -> None:
        row = number
        while time.monotonic() < until:
            row = (row + 7) % len(TEXTS)
            try:
                found = serving[0](TEXTS[row])
            except EngineError as error:
                if "closed" not in str(error):
                    wrong.append(str(error))
                continue  # ask again, of the one in its place
            if found != expected[row]:
                wrong.append(TEXTS[row])
            counts[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    memory = []
    while time.monotonic() < until:
        time.sleep(min(0.5, MINUTES * 30 / 20))
        old, serving[0] = serving[0], Predictor.load(place, engine=engine, threads=1)
        old.close()
        memory.append(psutil.Process().memory_info().rss)
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    serving[0].close()
    print(f"{engine}: {sum(counts)} calls, {len(memory)} reloads, {memory[0] >> 20} to {memory[-1] >> 20} MiB")
    assert wrong == [] and min(counts) > 0
    half = len(memory) // 2
    assert max(memory[half:]) < 1.1 * max(memory[: half + 1]) + 8 * 2**20  # no more than at the peak of the first half
