"""A folder's files and their SHA-256, in a file that `sha256sum --check` reads."""

from pathlib import Path

from hadskip_export.support.errors import BundleError
from hadskip_export.support.reading import opened

DIGESTS = "SHA256SUMS"


def sha256(file: Path) -> str:
    """Hexadecimal digest of a file's content."""
    import hashlib  # here, for it is a tenth of the time to import the runtime

    with opened(file) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_digests(folder: Path) -> None:
    """Of every file in a folder that is finished."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names]
    (folder / DIGESTS).write_text("".join(lines), encoding="utf-8")


def check_digests(folder: Path) -> None:
    """Does nothing about a folder without digests, which an older version wrote.

    Raises:
        BundleError: a file is missing or damaged.
    """
    digests = folder / DIGESTS
    if not digests.is_file():
        return
    try:
        listed = [line.split("  ", 1) for line in digests.read_text(encoding="utf-8").splitlines()]
        expected = {name: digest for digest, name in listed}
    except ValueError as error:
        raise BundleError(f"{digests}: damaged ({error}); copy the folder again, or train anew") from error
    for name, digest in expected.items():
        file = folder / name
        if not file.is_file():
            raise BundleError(f"{file}: missing, though {DIGESTS} lists it; copy the folder again, or train anew")
        if sha256(file) != digest:
            raise BundleError(
                f"{file}: damaged, its content is not what {DIGESTS} lists; copy the folder again, or remove {folder}"
                " and go on with --resume"
            )
