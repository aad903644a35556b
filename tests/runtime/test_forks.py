"""A child of a process that has loaded a bundle: the first call says where to load, and nothing hangs at its end."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hadskip_export.runtime import Predictor
from hadskip_export.support.errors import EngineError

ENGINES = {"ort": "bundle", "openvino": "openvino_bundle"}
LOAD_AGAIN = """
    try:
        print(Predictor.load(bundle, engine=engine, threads=threads)(TEXTS) == expected)
    except EngineError as error:
        print(error)
"""
OF_OPENVINO = (  # now and then it would wait forever
    "OpenVINO was used by the process that this one was forked from, and its threads stayed there; load the first"
    " predictor after the fork, in each process (gunicorn: leave --preload out)"
)
WAYS = {
    "close": "predictor.close()",
    "del": "del predictor",
    "exit": "pass",
    "an exception": "1 / 0",
    "_exit": "os._exit(0)",
    "load again": LOAD_AGAIN,
}


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", WAYS)
def test_a_child_says_where_to_load_and_ends(way: str, engine: str, threads: int, request: pytest.FixtureRequest):
    bundle = request.getfixturevalue(ENGINES[engine])
    code = f"""
        import os, signal, sys
        from hadskip_export.runtime import Predictor
        from hadskip_export.support.errors import EngineError
        bundle, engine, threads = {str(bundle)!r}, {engine!r}, {threads}
        TEXTS = ["a good film that is not dull " * 2] * 8
        predictor = Predictor.load(bundle, engine=engine, threads=threads)
        expected = predictor(TEXTS)
        child = os.fork()
        if child:
            signal.alarm(120)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(status, predictor(TEXTS) == expected)
        else:
            signal.alarm(60)
            try:
                predictor("good")
            except EngineError as error:
                print(error, flush=True)
    """
    code = textwrap.dedent(code) + textwrap.indent(textwrap.dedent(WAYS[way]), "    ")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = f"{bundle}: a predictor stays in the process that loaded it; call Predictor.load after the fork"
    lines = done.stdout.splitlines()
    assert lines.pop(0).startswith(said), done.stderr
    assert lines.pop() == f"{1 if way == 'an exception' else 0} True", done.stderr
    loaded = "True" if engine == "ort" else OF_OPENVINO
    assert lines == ([loaded] if way == "load again" else [])


def test_the_lock_that_another_thread_held_is_none_of_the_child_s(bundle: Path):
    with Predictor.load(bundle, warm_up=False) as predictor:
        with predictor._lock:
            child = os.fork()
            if not child:
                signal.alarm(60)
                predictor.close()
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("do", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_is_not_pickled_or_copied_and_says_what_to_do(bundle: Path, do):
    with Predictor.load(bundle) as predictor:
        with pytest.raises(EngineError, match=rf"{bundle}: .*call Predictor\.load after the fork"):
            do(predictor)
        assert predictor("good").label
