"""What is loaded from a user's folder is held against `transformers` on that folder; any difference is an error."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hadskip_export.modeling.checkpoint import load_classifier, read_config, save_tokenizer
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.support.errors import BundleError
from hadskip_export.verification.original import check_same_as_original
from tests.conftest import sentences

TEXTS = [text for text, _ in sentences(30, 3)]


@pytest.fixture(scope="module")
def classifier_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own: tokenizer and fine-tuned classifier, as `transformers` saves them."""
    folder = tmp_path_factory.mktemp("classifier")
    shutil.copytree(model_folder, folder, dirs_exist_ok=True)
    config = BertConfig.from_pretrained(model_folder, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    torch.manual_seed(1)
    model = BertForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    return folder


def edited(folder: Path, out: Path, file: str, **changes) -> Path:
    shutil.copytree(folder, out)
    content = json.loads((out / file).read_text()) | changes
    (out / file).write_text(json.dumps(content))
    return out


def check(folder: Path, out: Path, change: Callable | None = None, labels: tuple[str, ...] | None = None) -> None:
    """As training does it. `change`: makes our model or tokenizer another than that of the folder."""
    config, model = read_config(folder, labels), load_classifier(folder, labels)
    save_tokenizer(folder, out / "tokenizer.json")
    if change:
        change(model, out)
    tokenizer = Tokenizer(out / "tokenizer.json", 32, config.vocab_size, config.type_vocab_size)
    check_same_as_original(folder, tokenizer, model, TEXTS, fine_tuned=labels is None)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"truncation_side": "left"},
        {"padding_side": "left", "model_max_length": 7},
        {"model_input_names": ["input_ids", "attention_mask"]},
        {"do_lower_case": False},
        {"strip_accents": True},
    ],
    ids=repr,
)
def test_settings_outside_the_tokenizers_file_are_kept(settings, classifier_folder, tmp_path):
    check(edited(classifier_folder, tmp_path / "model", "tokenizer_config.json", **settings), tmp_path)


def test_a_model_that_answers_with_tuples_is_compared_like_others(classifier_folder, tmp_path):
    check(edited(classifier_folder, tmp_path / "model", "config.json", return_dict=False), tmp_path)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_of_which_only_a_part_is_read_is_compared_by_that(side, classifier_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.verification.test_original.TEXTS", [f"good {' ' * 5000} bad"])
    check(edited(classifier_folder, tmp_path / "model", "tokenizer_config.json", truncation_side=side), tmp_path)


def test_an_encoder_is_compared_by_its_outputs(model_folder, tmp_path):
    check(model_folder, tmp_path, labels=("a", "b", "c"))


def nudge(weight: str) -> Callable:
    def change(model, out: Path) -> None:
        with torch.no_grad():
            parameter = model.get_parameter(weight)
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))

    return change


def other_settings(**settings) -> Callable:
    return lambda model, out: (out / "tokenizer_config.json").write_text(json.dumps(settings))


def other_vocabulary(model, out: Path) -> None:
    content = json.loads((out / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = not content["normalizer"]["lowercase"]
    (out / "tokenizer.json").write_text(json.dumps(content))


def other_labels(model, out: Path) -> None:
    model.config = type(model.config)(**{**model.config.__dict__, "labels": ("good", "bad")})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (nudge("head.classifier.bias"), "logits"),
        (nudge("layers.1.down.weight"), "logits"),
        (other_settings(truncation_side="left"), "input_ids .* for the text"),
        (other_settings(model_input_names=["input_ids"]), r"token_type_ids .*\('a question', 'An answer.'\)"),
        (other_vocabulary, "input_ids"),
        (other_labels, r"the labels are \('bad', 'good'\), here they are \('good', 'bad'\)"),
    ],
    ids=["head", "layer", "truncation", "segments", "capitals", "labels"],
)
def test_a_difference_is_an_error_that_names_it(change, what, classifier_folder, tmp_path):
    with pytest.raises(BundleError, match=rf"in transformers {what}.*not supported") as error:
        check(classifier_folder, tmp_path, change)
    assert len(str(error.value)) < 400 + len(str(classifier_folder))


def test_segments_that_only_this_package_would_give_are_a_difference(classifier_folder, tmp_path):
    names = ["input_ids", "attention_mask"]
    folder = edited(classifier_folder, tmp_path / "model", "tokenizer_config.json", model_input_names=names)
    with pytest.raises(BundleError, match=r"in transformers token_type_ids are \[0, 0, 0"):
        check(folder, tmp_path, other_settings(model_input_names=["input_ids", "token_type_ids"]))


def test_a_difference_of_an_encoder_is_an_error(model_folder, tmp_path):
    with pytest.raises(BundleError, match="last_hidden_state"):
        check(model_folder, tmp_path, nudge("layers.2.up.weight"), labels=("a", "b"))
