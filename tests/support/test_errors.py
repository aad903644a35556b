"""An error is one line that can be read, whatever it quotes."""

import pytest

from hadskip_export.support.errors import MOST_CHARACTERS, BundleError


@pytest.mark.parametrize(
    ("quoted", "read"),
    [
        ("a\nb", "a b"),
        ("a\r\nb\u2028c\x0bd", "a b c d"),
        ("\x1b[2J", "�[2J"),
        ("\x00", "�"),
        ("\u202ereversed", "�reversed"),
        ("\ud800", "�"),
        ("Zürich 漢字 🙂", "Zürich 漢字 🙂"),
    ],
)
def test_what_does_something_to_a_terminal_is_left_out(quoted: str, read: str):
    assert str(BundleError(f"file: {quoted}")) == f"file: {read}"
    str(BundleError(quoted)).encode()


@pytest.mark.parametrize("length", [MOST_CHARACTERS, MOST_CHARACTERS + 1, 1_000_000])
def test_a_long_message_has_its_file_and_its_remedy(length: int):
    message = str(BundleError("bundle/manifest.json: ".ljust(length - 14, "x") + " build it anew"))
    assert message.startswith("bundle/manifest.json: xxx") and message.endswith("build it anew")
    assert len(message) <= MOST_CHARACTERS
    assert ("[...]" in message) == (length > MOST_CHARACTERS)
