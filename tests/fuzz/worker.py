"""A process that reads cases until one ends it: by a signal, an abort, or ten seconds without an answer.

    python -m tests.fuzz.worker BUNDLE FOLDER SEED FIRST LAST STEP

Before each case its number is in FOLDER/number and its files in FOLDER/case. What is wrong with a case that did not end
the process goes to FOLDER/findings/NUMBER.
"""

import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path

from hadskip_export.support.errors import HadskipError
from tests.fuzz.readers import READERS, make_case

SECONDS = 10  # for a case; SIGALRM ends the process even inside a library
BYTES = 4 << 30  # of address space


def keep(folder: Path, case: Path, reader: str, why: str) -> None:
    """Saves a case that is a finding: its files, and what went wrong."""
    folder.mkdir(parents=True)
    shutil.copytree(case, folder / "case", symlinks=True, ignore=_pipes)
    (folder / "why.txt").write_text(f"{reader}\n{why}\n", encoding="utf-8", errors="backslashreplace")


def _pipes(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if Path(folder, name).is_fifo()}


def check(number: int, seed: int, case: Path, bundle: Path) -> tuple[str, str | None]:
    """The reader of a case, and what is wrong if anything is."""
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir()
    reader = make_case(number, seed, case, bundle)
    signal.alarm(SECONDS)
    try:
        READERS[reader].read(case, bundle)
    except HadskipError as error:
        message = str(error)
        return reader, None if message.isprintable() and len(message) < 2500 else f"not a line: {message!r}"
    except BaseException:
        return reader, traceback.format_exc()
    finally:
        signal.alarm(0)
    return reader, None


def main() -> None:
    bundle, folder = Path(sys.argv[1]), Path(sys.argv[2])
    seed, first, last, step = map(int, sys.argv[3:])
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    for number in range(first, last, step):
        (folder / "number").write_text(str(number))
        reader, why = check(number, seed, folder / "case", bundle)
        if why is not None:
            keep(folder / "findings" / str(number), folder / "case", reader, why)
    (folder / "number").write_text("done")


if __name__ == "__main__":
    main()
