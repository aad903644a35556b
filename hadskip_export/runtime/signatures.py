"""Whether a bundle is what the holder of a key signed, by OpenSSF's format for models (OMS) and its own library.

A bundle's hashes guard against damage. Whoever can write all of it can write them, too; the signature they cannot.
"""

import base64
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from hadskip_export.runtime.bundle import MANIFEST, Bundle
from hadskip_export.support.errors import BundleError, first_line, optional_import
from hadskip_export.support.files import scratch
from hadskip_export.support.reading import read_at_most

SIGNATURE = "model.sig"
MOST_SIGNATURE = 16 << 20  # bytes; it has a line for each file
EXTRA = "sign"


def check_signature(bundle: Bundle, public_key: str | Path) -> None:
    """That the manifest which was read is the one that was signed: `read_bundle` has held every file against it.

    Args:
        public_key: PEM, of an elliptic curve (P-256, P-384 or P-521).

    Raises:
        BundleError: no such key; no signature, another key's, or one of something else than this bundle.
        EngineError: model-signing is not installed.
    """
    verifying: Any = optional_import("model_signing.verifying", EXTRA)
    folder = bundle.path
    try:
        check = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:  # whatever the reader of keys raises
        raise BundleError(
            f"{public_key}: not a public key of an elliptic curve in PEM ({first_line(error)})"
        ) from error
    try:
        content = read_at_most(folder / SIGNATURE, MOST_SIGNATURE)
    except OSError as error:
        raise BundleError(
            f"{folder}: not signed ({SIGNATURE}: {error.strerror}), and --verify asks for it; its maker signs it with"
            " hadskip-export build BUNDLE --sign KEY"
        ) from error
    try:
        with scratch() as place, contextlib.redirect_stdout(sys.stderr):  # the library warns on standard output
            own = place / SIGNATURE  # so that what is verified is what is read below, whoever writes to the folder
            own.write_bytes(content)
            # Files that nobody signed are none of a bundle's either, and may be anything: they are not read.
            check.set_ignore_unsigned_files(True).verify(folder, own)
        signed = {one["name"]: one["digest"] for one in _statement(content)["predicate"]["resources"]}
    except Exception as error:  # the file is a stranger's, and the library raises whatever it stumbles over
        raise BundleError(f"{folder}: is not what the holder of {public_key} signed ({first_line(error)})") from error
    # Else it is of what that key signed elsewhere, or the manifest has been changed since it was read.
    if signed.get(MANIFEST) != bundle.digest:
        raise BundleError(f"{folder}: is not what the holder of {public_key} signed ({MANIFEST} is another)")


def _statement(signature: bytes) -> dict[str, Any]:
    """What is signed: an in-toto statement in an envelope (DSSE)."""
    return json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
