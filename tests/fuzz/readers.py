"""What is fuzzed: for each reader how a case is made, in a folder of its own, and how it is read. A reader may give
what it likes or raise a `HadskipError`; what else must hold is asserted here."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq

from hadskip_export.data.examples import read_examples
from hadskip_export.data.glue import GLUE_TASKS, read_folder
from hadskip_export.data.problems import PROBLEM_TYPES
from hadskip_export.data.rows import read_rows
from hadskip_export.runtime import Predictor
from hadskip_export.runtime.bundle import DIGEST, MANIFEST, read_bundle
from hadskip_export.runtime.integrity import sha256
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.support.errors import DataError
from hadskip_export.trainers.recipe import load_recipe
from hadskip_export.verification.golden import read_golden
from tests.fuzz.mutations import ODD_VALUES, changed_archive, changed_bytes, changed_data, changed_json
from tests.runtime.wire import Writer, oracle

MAX_LENGTH = 16
TEXTS = ["a good film", ("it is not", "very dull"), "", "Zürich \U00013000 漢字 [MASK] \x00", "x" * 300, "a " * 200]


@dataclass(frozen=True)
class Reader:
    """`make` writes a case into a folder, from an intact bundle; `read` reads it."""

    make: Callable[[Path, Random, Path], None]
    read: Callable[[Path, Path], None]
    share: int  # of the cases


def _replace(file: Path, content: bytes) -> None:
    """Files may be links to those of the intact bundle."""
    file.unlink(missing_ok=True)
    file.write_bytes(content)


# Files of texts


def _table(random: Random, kind: str) -> bytes:
    """Of one label a text, or of lists of them, which CSV has as text."""
    rows = [("a good film", "yes"), ('with "quotes", and commas', "no"), ("zwei\nZeilen", "yes"), ("🙂", "1.0")]
    rows = [random.choice(rows) for _ in range(random.randrange(1, 8))]
    several = random.randrange(2)
    if kind == ".jsonl":
        labelled = [{"text": text, "label": [label] * several or label} for text, label in rows]
        return b"".join(json.dumps(row).encode() + b"\n" for row in labelled)
    quote = '"{}"'.format if kind == ".csv" else str
    between = "," if kind == ".csv" else "\t"
    written = json.dumps if random.randrange(2) else repr
    lines = [between.join(["text", "label"])]
    lines += [
        between.join(quote(field.replace('"', '""')) for field in (text, written([label]) if several else label))
        for text, label in rows
    ]
    return "\n".join(lines).encode()


def _make_table(folder: Path, random: Random, bundle: Path) -> None:
    kind = random.choice([".csv", ".tsv", ".jsonl"])
    (folder / f"table{kind}").write_bytes(changed_bytes(_table(random, kind), random))


def _make_packed(folder: Path, random: Random, bundle: Path) -> None:
    """With gzip, where the damage is before or after it, as Parquet, or in the two files of a folder of `datasets`."""
    table = pa.table({"text": ["a good film", "Zürich 🙂"] * 3, "label": [0, 1] * 3, "id": range(6)})
    classes = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(classes)})
    kind = random.choice(["gz", "parquet", "state.json", "data.arrow"])
    if kind == "gz":
        plain = _table(random, ".jsonl")
        content = random.choice(
            [changed_bytes(gzip.compress(plain), random), gzip.compress(changed_bytes(plain, random))]
        )
        (folder / "table.jsonl.gz").write_bytes(content)
    elif kind == "parquet":
        made = io.BytesIO()
        pq.write_table(table, made, row_group_size=2, compression=random.choice(["snappy", "gzip", "none"]))
        (folder / "table.parquet").write_bytes(changed_bytes(made.getvalue(), random))
    else:
        made = io.BytesIO()
        with pa.ipc.new_stream(made, table.schema) as writer:
            writer.write_table(table)
        state = json.dumps({"_data_files": [{"filename": "data.arrow"}], "_indices_data_files": None}).encode()
        files = {"state.json": state, "data.arrow": made.getvalue()}
        files[kind] = changed_json(state, random) if kind == "state.json" else changed_bytes(files[kind], random)
        (folder / "saved").mkdir()
        for name, content in files.items():
            (folder / "saved" / name).write_bytes(content)


def _read_table(folder: Path, bundle: Path) -> None:
    (file,) = folder.iterdir()
    bad: list[DataError] = []
    lines = [row.line for row in read_rows(file, bad.append)]
    assert lines == sorted(set(lines))
    for problem_type in PROBLEM_TYPES:
        with contextlib.suppress(DataError):
            read_examples(file, problem_type=problem_type)
    read_examples(file)


def _make_glue(folder: Path, random: Random, bundle: Path) -> None:
    name = random.choice(sorted(GLUE_TASKS))
    task = GLUE_TASKS[name]
    (folder / name).mkdir()
    header = task.header or ("index", *task.text, task.label)
    rows = [[random.choice(task.labels) if column == task.label else "a text" for column in header] for _ in range(4)]
    lines = [*([] if task.header else [header]), *rows]
    content = "".join("\t".join(line) + "\n" for line in lines).encode()
    for file in task.files:
        (folder / name / file).write_bytes(content)
    file = random.choice(task.files)
    (folder / name / file).write_bytes(changed_bytes(content, random))


def _read_glue(folder: Path, bundle: Path) -> None:
    (data,) = folder.iterdir()
    for _, examples in read_folder(data.name, data):
        assert len(examples.texts) == len(examples.labels) == len(examples.lines) > 0


# Recipes


def _make_recipe(folder: Path, random: Random, bundle: Path) -> None:
    content = resources.files("hadskip_export.trainers").joinpath("recipes", "paper.toml").read_bytes()
    if random.random() < 0.5:
        lines = content.splitlines()
        number = random.choice([number for number, line in enumerate(lines) if b"=" in line])
        name = lines[number].partition(b"=")[0]
        lines[number] = name + b"= " + json.dumps(random.choice(ODD_VALUES)).encode()
        content = b"\n".join(lines)
    else:
        content = changed_bytes(content, random)
    (folder / "recipe.toml").write_bytes(content)


def _read_recipe(folder: Path, bundle: Path) -> None:
    load_recipe(folder / "recipe.toml")


# Tokenizers

PARTS = {
    "normalizer": [
        {"type": "NFKC"}, {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAAAAAAA"},
        {"type": "Replace", "pattern": {"Regex": "a*"}, "content": "b"}, {"type": "Prepend", "prepend": "_"},
        {"type": "Sequence", "normalizers": [{"type": "Strip", "strip_left": True, "strip_right": True}]},
    ],
    "pre_tokenizer": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "FixedLength", "length": 2}, {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"},
        {"type": "Split", "pattern": {"Regex": "(a|b)+"}, "behavior": "Isolated", "invert": False},
    ],
    "post_processor": [
        {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        {"type": "RobertaProcessing", "sep": ["s", 3], "cls": ["c", 2], "trim_offsets": True, "add_prefix_space": True},
    ],
    "model": [
        {"type": "Unigram", "unk_id": 0, "vocab": [["[UNK]", 0.0], ["a", -1.0], ["film", -2.0]]},
        {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "film": 2}, "unk_token": "[UNK]"},
        {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "u": 3}, "merges": ["a b"], "unk_token": "u"},
    ],
    "truncation": [{"direction": "Right", "max_length": 1, "strategy": "OnlySecond", "stride": 9}],
    "padding": [{
        "strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": 7, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "p",
    }],
}  # fmt: skip


def _make_tokenizer(folder: Path, random: Random, bundle: Path) -> None:
    plain = json.loads((bundle / "model/tokenizer.json").read_bytes())
    for part in random.sample(sorted(PARTS), random.choice([0, 1, 1, 2])):
        plain[part] = random.choice(PARTS[part])
    (folder / "tokenizer.json").write_bytes(changed_json(json.dumps(plain).encode(), random))
    if random.random() < 0.2:
        content = (bundle / "model/tokenizer_config.json").read_bytes()
        (folder / "tokenizer_config.json").write_bytes(changed_json(content, random))


def _read_tokenizer(folder: Path, bundle: Path) -> None:
    tokenizer = Tokenizer(folder / "tokenizer.json", MAX_LENGTH, vocab_size=200)
    tokenizer.vocabulary()
    for text in TEXTS:
        (encoded,) = tokenizer.encode([text])
        assert 1 <= len(encoded) <= MAX_LENGTH, f"{len(encoded)} tokens of {text!r}"
        assert len(encoded.type_ids) == len(encoded) and 0 <= encoded.ids.min() <= encoded.ids.max() < 200


# Bundles


def _copy(bundle: Path, folder: Path) -> list[Path]:
    shutil.copytree(bundle, folder, copy_function=os.link, dirs_exist_ok=True)
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _reseal(folder: Path, change: Callable[[dict], dict]) -> None:
    """The manifest of a copy, changed, with digests that fit."""
    plain = json.loads((folder / MANIFEST).read_bytes())
    for name, info in plain["files"].items():
        file = folder / name
        if file.is_file() and not file.is_symlink() and file.stat().st_nlink == 1:  # of this case's own
            info.update(size=file.stat().st_size, sha256=sha256(file))
    _seal(folder, json.dumps(change(plain)).encode())


def _seal(folder: Path, manifest: bytes) -> None:
    _replace(folder / MANIFEST, manifest)
    _replace(folder / DIGEST, hashlib.sha256(manifest).hexdigest().encode() + b"\n")


def _make_damage(folder: Path, random: Random, bundle: Path) -> None:
    """A copy that has suffered, with the manifest it came with."""
    files = _copy(bundle, folder)
    file = random.choice(files)
    content, kind = file.read_bytes(), random.randrange(6)
    if kind < 3:
        _replace(file, changed_bytes(content[:100_000], random) + content[100_000:])
    elif kind == 3:
        file.unlink()
        if random.random() < 0.5:
            file.mkdir()
    elif kind == 4:
        file.unlink()
        where = ["/dev/zero", "/dev/null", file.name, "../..", str(bundle / MANIFEST), random.choice(files)]
        file.symlink_to(random.choice(where)) if random.random() < 0.8 else os.mkfifo(file)
    else:
        other = random.choice(files)
        _replace(file, other.read_bytes())


@cache
def _answer(bundle: Path) -> tuple:
    opened = read_bundle(bundle)
    contents = tuple((bundle / name).read_bytes() for name in opened.manifest.files)
    return opened.manifest, contents


def _read_damage(folder: Path, bundle: Path) -> None:
    opened = read_bundle(folder)
    contents = tuple((folder / name).read_bytes() for name in opened.manifest.files)
    assert (opened.manifest, contents) == _answer(bundle), "damage that nobody noticed"


def _make_manifest(folder: Path, random: Random, bundle: Path) -> None:
    _copy(bundle, folder)
    if random.random() < 0.2:
        _seal(folder, changed_bytes((folder / MANIFEST).read_bytes(), random))
    else:
        _reseal(folder, lambda plain: _changed_field(plain, random))


def _changed_field(plain: dict, random: Random) -> dict:
    """One field as likely as another: most of a manifest is the list of files."""
    field = random.choice(list(plain))
    return plain | {field: changed_data(plain[field], random)}


def _make_graph(folder: Path, random: Random, bundle: Path) -> None:
    _copy(bundle, folder)
    file = random.choice(sorted((folder / "model").glob("*.onnx")))
    model = onnx.load(file, load_external_data=False)
    outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
    if outside and random.random() < 0.5:
        entry = random.choice(random.choice(outside).external_data)
        entry.key, entry.value = "location", random.choice(["/etc/hostname", "../x", "weights/../x", "", "\x00", "*"])
    content = Writer(random, odd=random.random() < 0.5).message(model)
    _replace(file, changed_bytes(content, random) if random.random() < 0.4 else content)
    _reseal(folder, lambda plain: plain)


def _make_piece(folder: Path, random: Random, bundle: Path) -> None:
    """A piece, or anything else that is listed, that is another one; links within the bundle and out of it."""
    files = [file for file in _copy(bundle, folder) if file.name not in (MANIFEST, DIGEST)]
    for _ in range(random.choice([1, 2])):
        file, other = random.sample(files, 2)
        if random.random() < 0.5:
            _replace(file, other.read_bytes())
        else:
            file.unlink()
            file.symlink_to(random.choice([other, os.path.relpath(other, file.parent), "/etc/hostname"]))
    _reseal(folder, lambda plain: plain)


def _make_golden(folder: Path, random: Random, bundle: Path) -> None:
    _copy(bundle, folder)
    if random.random() < 0.3:
        file = folder / "golden/inputs.jsonl"
        lines = file.read_bytes().splitlines()
        place = random.randrange(len(lines))
        lines[place] = changed_json(lines[place], random)
        _replace(file, b"\n".join(lines))
    else:
        file = folder / "golden/outputs.npz"
        _replace(file, changed_archive(file.read_bytes(), random))
    _reseal(folder, lambda plain: plain)


def _seen_by_onnx(file: Path) -> set[str]:
    try:
        return oracle(onnx.load(file, load_external_data=False))
    except Exception:  # protobuf refuses what it reads all of
        return set()


def _read_bundle(folder: Path, bundle: Path) -> None:
    opened = read_bundle(folder)
    model, root = opened.manifest.model, folder.resolve()
    for name in opened.manifest.files:
        assert (folder / name).resolve().is_relative_to(root), f"{name} is not inside"
    for file in sorted((folder / "model").glob("*.onnx")):
        if f"model/{file.name}" in opened.manifest.files:
            for location in _seen_by_onnx(file):
                assert f"model/{location}" in opened.manifest.files, f"{location!r} is not listed"
    golden = read_golden(opened)
    assert golden.margins.shape == golden.routes.shape == (len(golden.texts), model.layers)
    assert golden.logits.shape == (len(golden.texts), len(golden.labels))
    assert golden.thresholds.shape == (model.layers,) and golden.margins.dtype == np.float32
    file = opened.file(opened.manifest.tokenizer)
    Tokenizer(file, model.max_length, model.vocab_size, model.type_vocab_size).encode(["a good film"])


def _serve(folder: Path, bundle: Path) -> None:
    with Predictor.load(folder, threads=1) as predictor:
        assert predictor("a good film").label in predictor.labels


READERS = {
    "table": Reader(_make_table, _read_table, 22),
    "packed": Reader(_make_packed, _read_table, 8),
    "glue": Reader(_make_glue, _read_glue, 8),
    "recipe": Reader(_make_recipe, _read_recipe, 10),
    "tokenizer": Reader(_make_tokenizer, _read_tokenizer, 22),
    "damage": Reader(_make_damage, _read_damage, 6),
    "manifest": Reader(_make_manifest, _read_bundle, 7),
    "served": Reader(_make_manifest, _serve, 1),
    "graph": Reader(_make_graph, _read_bundle, 6),
    "piece": Reader(_make_piece, _read_bundle, 4),
    "golden": Reader(_make_golden, _read_bundle, 6),
}


def make_case(number: int, seed: int, folder: Path, bundle: Path) -> str:
    """Writes case `number` of a seed into an empty folder; returns the name of its reader."""
    random = Random(f"{seed} {number}")
    (name,) = random.choices(list(READERS), [reader.share for reader in READERS.values()])
    READERS[name].make(folder, random, bundle)
    return name
