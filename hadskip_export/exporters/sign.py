"""A bundle's signature, see `runtime.signatures`."""

import os
from pathlib import Path
from typing import Any

from hadskip_export.runtime.bundle import DIGEST, MANIFEST, read_manifest
from hadskip_export.runtime.signatures import EXTRA, SIGNATURE
from hadskip_export.support.errors import BundleError, first_line, optional_import
from hadskip_export.support.files import replaced

LOCK, JOURNAL = ".lock", ".adding"  # of who adds to a bundle, and its files before that
PASSWORD = "HADSKIP_KEY_PASSWORD"  # the environment's, of a key that is encrypted: an argument is seen by everybody


class Signer:
    """Signs with a key that was read before the work began.

    Args:
        private_key: PEM, of an elliptic curve (P-256, P-384 or P-521).

    Raises:
        BundleError: no such key, or the environment's HADSKIP_KEY_PASSWORD does not open it.
        EngineError: model-signing is not installed.
    """

    def __init__(self, private_key: str | Path):
        signing: Any = optional_import("model_signing.signing", EXTRA)
        self._hashing: Any = optional_import("model_signing.hashing", EXTRA)
        password = os.environ.get(PASSWORD)
        try:
            self._config = signing.Config().use_elliptic_key_signer(
                private_key=private_key, password=None if password is None else password.encode()
            )
        except Exception as error:  # whatever the reader of keys raises
            raise BundleError(
                f"--sign {private_key}: not a private key of an elliptic curve in PEM, or {PASSWORD} does not open it"
                f" ({first_line(error)})"
            ) from error

    def sign(self, folder: Path) -> None:
        """Writes the signature of the bundle as it is now. What it does not name, as an engine that was replaced, is
        listed there as ignored, so that the library's own command takes the bundle, too.

        Raises:
            BundleError: what the library does not sign, as a link or a pipe.
        """
        folder = folder.resolve()
        named = {MANIFEST, DIGEST, *read_manifest(folder).files}
        every = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())
        ignored = {SIGNATURE, f".{SIGNATURE}.part", LOCK, JOURNAL, *every} - named
        self._config.set_hashing_config(self._hashing.Config().set_ignored_paths(paths=sorted(ignored)))
        with replaced(folder / SIGNATURE) as part:
            try:
                self._config.sign(folder, part)
            except ValueError as error:
                raise BundleError(f"{folder}: cannot be signed ({first_line(error)}); remove that") from error
