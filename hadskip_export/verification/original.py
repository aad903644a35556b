"""The user's own folder in `transformers`, from text to answer: what full BERT has to equal.

Every other check compares this package with itself. Here the tokenizer is of the class and with the settings that the
folder names, and the model is whatever `transformers` makes of it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from hadskip_export.data.text import Text
from hadskip_export.modeling.checkpoint import label_names, load_tokenizer
from hadskip_export.modeling.encoder import Classifier
from hadskip_export.runtime.tokenization import Tokenizer, pad
from hadskip_export.support.errors import BundleError, first_line
from hadskip_export.support.silence import silenced

COUNT = 12  # of the user's own texts, and of the longest among them
TOLERANCE = 1e-4  # of the largest number of an answer: fp32 summed in another order
LONGEST = 80  # characters quoted of anything
MANY_WORDS = " ".join(f"{number} words, {word}" for number in range(100) for word in ("first", "then", "last"))
PROBES: tuple[Text, ...] = (
    "",
    "  Two  spaces,\ttab\nand\u00a0\u200bothers ",
    "UPPER lower don't 1,000.50 e-mail@example.org #tag",
    "na\u00efve caf\u00e9 \u0130stanbul \u1e9e \ufb01 \u00bd \u4e2d\u6587 \U0001f600 \u0645\u0631\u062d\u0628\u0627",
    "[CLS] [SEP] [MASK] [PAD] <s> </s> <mask> <unk>",
    MANY_WORDS,
    ("a question", "An answer."),
    ("", "only a second text"),
    (MANY_WORDS, "a short one"),
    ("a short one", MANY_WORDS),
)


def check_same_as_original(
    folder: Path, tokenizer: Tokenizer, model: Classifier, texts: Sequence[Text], *, fine_tuned: bool
) -> None:
    """Compares tokens, segments, answers and labels, on some of `texts` and on some made to find a tokenizer's settings
    out.

    Args:
        folder: a Hugging Face model folder with its tokenizer.
        tokenizer: what is to be trained with and served.
        model: what this package made of the folder's.
        fine_tuned: the folder's is a classifier, whose logits and labels are compared; else the encoder's outputs are.

    Raises:
        BundleError: there is a difference beyond fp32's (the message says which, and on what text).
    """
    their_tokenizer, theirs = load_tokenizer(folder), _load(folder, fine_tuned)
    if fine_tuned and (labels := label_names(theirs.config.id2label, folder)) != model.config.labels:
        raise _difference(folder, f"the labels are {labels}, here they are {model.config.labels}")
    for text in filter(tokenizer.takes, (*PROBES, *texts[:COUNT], *sorted(texts, key=_length)[-COUNT:])):
        (encoded,) = tokenizer.encode([text])
        pair = tokenizer.part_read(text)
        inputs = their_tokenizer(*pair, truncation=True, max_length=tokenizer.max_length, return_tensors="pt")
        given = {name: tensor[0].tolist() for name, tensor in inputs.items()}
        for name, ours in {"input_ids": encoded.ids, "token_type_ids": encoded.type_ids}.items():
            there = given.get(name, [0] * len(encoded))
            if there != ours.tolist():
                raise _difference(folder, f"{name} are {there}, here they are {ours.tolist()}", text)
        batch = pad([encoded])
        arrays = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
        with torch.no_grad():
            try:
                found = theirs(**inputs, return_dict=True)
            except Exception as error:  # an input that it does not take, perhaps
                raise BundleError(
                    f"{folder}: in transformers its model fails on what its tokenizer gives ({error})"
                ) from error
            here = model(*map(torch.from_numpy, arrays), keep_states=not fine_tuned)
        name = "logits" if fine_tuned else "last_hidden_state"
        one, other = found[name], here.logits if fine_tuned else model.head.states_norm(here.hidden_states[-1])
        far = (one - other).abs().max().item()
        if not far <= TOLERANCE * (1 + one.abs().max().item()):
            raise _difference(folder, f"{name} are up to {far:.2g} away from those here", text)


def _load(folder: Path, fine_tuned: bool) -> torch.nn.Module:
    """On the CPU, in fp32."""
    from transformers import AutoModel, AutoModelForSequenceClassification
    from transformers.utils import logging

    kind = AutoModelForSequenceClassification if fine_tuned else AutoModel
    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with silenced():
            return kind.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    except Exception as error:  # transformers raises many kinds here
        raise BundleError(f"{folder}: transformers cannot load it ({first_line(error)})") from error
    finally:
        if shows_progress:
            logging.enable_progress_bar()


def _difference(folder: Path, what: str, text: Text | None = None) -> BundleError:
    about = "" if text is None else f", for the text {_short(repr(text))}"
    return BundleError(f"{folder}: in transformers {_short(what)}{about}; this model is not supported")


def _short(shown: str) -> str:
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."


def _length(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))
