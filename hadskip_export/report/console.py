"""How a command speaks and ends: its log, its result as text or JSON, and one line where it fails.

Exit codes: 0 done; 1 done, and the answer is no; 2 the request, the files or the machine are at fault.
"""

import codecs
import contextlib
import errno
import io
import json
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import click

from hadskip_export.report.plain import to_json
from hadskip_export.runtime.bundle import DIGEST, MANIFEST, MOST_MANIFEST
from hadskip_export.support.errors import HadskipError
from hadskip_export.support.files import NO_ROOM, check_place, replaced, resolved
from hadskip_export.support.reading import read_at_most
from hadskip_export.support.signals import Ended, interruption, unwinding

STDOUT = Path("-")
WRITE = {"--json", "--report", "--output"}  # options that name a file to write
ESCAPED = "json-escaped"  # the name of a way to write characters that an encoding lacks


def _log(context: click.Context, _option: click.Parameter, count: int) -> None:
    """Before and after the command's name it means the same, and counts together."""
    if not count:
        return
    logger, before = logging.getLogger("hadskip_export"), context.meta.get(__name__, 0)
    context.meta[__name__] = before + count
    logger.setLevel(logging.INFO if before + count == 1 else logging.DEBUG)
    if not before:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
        logger.addHandler(handler)
        context.find_root().call_on_close(lambda: logger.removeHandler(handler))


verbose = click.option(
    "-v", "--verbose", count=True, expose_value=False, callback=_log, help="Log what is done; twice for more."
)


class Command(click.Command):
    """A command that writes over nothing that it reads."""

    def invoke(self, context: click.Context) -> Any:
        given = {_name_of(one): _places(context.params.get(one.name or "")) for one in self.params}
        written = [(name, file) for name in sorted(WRITE & given.keys()) for file in given[name]]
        read = [(name, place) for name in sorted(given.keys() - WRITE) for place in given[name]]
        for number, (name, file) in enumerate(written):
            if other := next((other for other, place in read if _is_of(place, file)), None):
                raise click.UsageError(f"{name} {file}: is the input ({other}), or of it; name another")
            if other := next((other for other, one in written[:number] if resolved(one) == resolved(file)), None):
                raise click.UsageError(f"{name} {file}: is {other}, too; name another")
        return super().invoke(context)


class Commands(click.Group):
    command_class = Command

    def add_command(self, command: click.Command, name: str | None = None) -> None:
        super().add_command(verbose(command), name)

    def invoke(self, context: click.Context) -> Any:
        try:
            with unwinding():
                try:
                    return super().invoke(context)
                except Exception as error:
                    if reason := interruption(error):
                        raise reason from None
                    raise
                finally:
                    if sys.stdout is not None:  # as it is where it was closed
                        sys.stdout.flush()  # here, where a full disk under it is still an error like others
        except HadskipError as error:
            _fail(str(error))
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever reads has had enough: click ends quietly
                raise
            if error.filename is None and error.errno in NO_ROOM:
                _discard_output()
            _fail(_said(error))
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        except Ended as error:
            _fail(str(error), error.exit_code)

    def main(self, *arguments: Any, **options: Any) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors=ESCAPED)
        return super().main(*arguments, **options)


def _name_of(parameter: click.Parameter) -> str:
    return parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name


def _places(value: object) -> list[Path]:
    """What may be files or folders among the values of an option; a word may be called as one, too."""
    several = value if isinstance(value, list | tuple) else [value]
    return [Path(one) for one in several if isinstance(one, str | Path) and str(one) != str(STDOUT)]


def _is_of(place: Path, file: Path) -> bool:
    """Whether a file that is there is `place`, or one that the bundle there consists of."""
    try:
        if not file.is_file() or not place.exists():
            return False
        if not (place / MANIFEST).is_file():
            return file.samefile(place)
        listed = json.loads(read_at_most(place / MANIFEST, MOST_MANIFEST))["files"]
        return str(file.resolve().relative_to(place.resolve())) in {MANIFEST, DIGEST, *listed}
    except (OSError, ValueError, LookupError, TypeError):  # a text and no path, or no bundle: others say so
        return False


def _fail(message: str, exit_code: int = 2) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    sys.exit(exit_code)


def _said(error: OSError) -> str:
    """What the system said, of which file, and what to do where that is known."""
    name = error.filename or ("standard output" if error.errno in NO_ROOM else "the system")
    remedies = dict.fromkeys(NO_ROOM, "make room there, then run the command again")
    remedies |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "give this user the right to, or name another")
    remedy = remedies.get(error.errno or 0)
    return f"{name}: {error.strerror or error}" + (f"; {remedy}" if remedy else "")


def _discard_output() -> None:
    """What standard output still holds, which Python would try to write once more at its end, and complain."""
    with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Characters that standard output does not have, as JSON writes them: what is JSON stays JSON."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(ESCAPED, _escape)


def _place(_context: click.Context, _option: click.Parameter, file: Path | None) -> Path | None:
    """Of `--json`."""
    if file is not None and file != STDOUT:
        check_place(file, "--json")
    return file


json_option = click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    callback=_place,
    metavar="FILE",
    help="Write the whole result there as JSON; - prints it instead of the text.",
)


def show(lines: Iterable[str], result: Any, json_file: Path | None) -> None:
    if json_file == STDOUT:
        click.echo(to_json(result))
        return
    for line in lines:
        click.echo(line)
    if json_file is not None:
        with replaced(json_file) as part:
            part.write_text(to_json(result) + "\n", encoding="utf-8")
        click.echo(f"written: {json_file}")
