"""A file is there whole or not at all."""

from pathlib import Path

import pytest

from hadskip_export.support.files import replaced


@pytest.mark.parametrize("before", [None, "before"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, None])
def test_a_file_is_replaced_when_the_block_ends_well_and_else_nothing_is_left(tmp_path: Path, before, error):
    file = tmp_path / "file.json"
    if before is not None:
        file.write_text(before)

    def write() -> None:
        with replaced(file) as part:
            part.write_text("after")
            assert (file.read_text() if file.exists() else None) == before
            if error is not None:
                raise error

    if error is None:
        write()
    else:
        with pytest.raises(error):
            write()
    assert (file.read_text() if file.exists() else None) == (before if error else "after")
    assert list(tmp_path.iterdir()) == ([file] if file.exists() else [])


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path):
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(file)
    with replaced(link) as part:
        part.write_text("after")
    assert link.is_symlink() and file.read_text() == "after" and len(list(tmp_path.iterdir())) == 2
