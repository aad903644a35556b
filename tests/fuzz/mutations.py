"""Changes by chance, the same ones for the same seed: of bytes, of plain data, of archives."""

import io
import json
import zipfile
from copy import deepcopy
from random import Random
from typing import Any

ODD_BYTES = [
    b"\x00", b"\xff", b"\xef\xbb\xbf", b'"', b"'", b"\\", b"\n", b"\r", b"\t", b",", b"[", b"{", b"]", b"}",
    b"\x80" * 12, b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"-1", b"1e999", b"NaN", b"\xed\xa0\x80", b"\\ud800",
    b"\x1b", b"null", "\u2028".encode(), "\u0130".encode(), "\U0001f642".encode(), b"x" * 70_000,
]  # fmt: skip
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, 2**64, 2**70, -(2**70), 0.5, -0.0, 1e308, 5e-324, "", " ",
    "x" * 5000, "\x00", "../..", "/", ".", "/dev/zero", "a\nb", "\u2028", "[UNK]", [], {}, [[]], [None], {"": None},
    [0] * 300, ["a", "b"], "(a+)+$", "(" * 300,
]  # fmt: skip


def changed_bytes(content: bytes, random: Random) -> bytes:
    """One to four changes: bits, slices taken out, doubled or moved, something odd put in."""
    made = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        start = random.randrange(len(made) + 1)
        end = min(len(made), start + random.choice([1, 1, 2, 8, 100, len(made)]))
        kind = random.randrange(6)
        if kind == 0 and start < len(made):
            made[start] ^= 1 << random.randrange(8)
        elif kind == 1:
            del made[start:end]
        elif kind == 2:
            made[start:start] = made[start:end]
        elif kind == 3:
            part = made[start:end]
            del made[start:end]
            place = random.randrange(len(made) + 1)
            made[place:place] = part
        elif kind == 4:
            made[start : start + random.choice([0, 1, 4])] = random.choice(ODD_BYTES)
        else:
            made[start:end] = random.randbytes(random.choice([1, 2, 9]))
    return bytes(made)


def changed_data(plain: Any, random: Random) -> Any:
    """One to three values replaced, taken out, or put where another one was."""
    box = [plain]
    for _ in range(random.choice([1, 1, 2, 3])):
        places = list(_places(box))
        if not places:
            break
        holder, key = random.choice(places)
        kind = random.randrange(5)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            other, other_key = random.choice(places)
            holder[key] = deepcopy(other[other_key])
        elif kind == 2 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * random.choice([-1, 2, 10**9]) + random.choice([0, 1, -1])
        elif kind == 3 and isinstance(holder[key], str):
            text = changed_bytes(holder[key].encode(errors="replace"), random).decode(errors="replace")
            holder[key] = text[:10_000]
        else:
            holder[key] = deepcopy(random.choice(ODD_VALUES))
    return box[0] if box else None


def _places(plain: Any):
    """(container, key) of every value; of a long container the first few stand for all."""
    items = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for number, (key, value) in enumerate(list(items)):
        if number == 40:
            return
        yield plain, key
        yield from _places(value)


def changed_json(content: bytes, random: Random) -> bytes:
    """JSON of other data, or other bytes."""
    if random.random() < 0.3:
        return changed_bytes(content, random)
    return json.dumps(changed_data(json.loads(content), random)).encode()


def changed_archive(content: bytes, random: Random) -> bytes:
    """An archive of other members, or other bytes."""
    if random.random() < 0.3:
        return changed_bytes(content, random)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    chosen = random.choice(list(members))
    head = members[chosen][:128]
    members[chosen] = changed_bytes(head, random) + members[chosen][128:]
    with zipfile.ZipFile(made, "w", random.choice([zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED])) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return made.getvalue()
