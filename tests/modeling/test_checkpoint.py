"""Checkpoints go out to `transformers` and come back unchanged; what is out of scope is refused by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, BertModel

from hadskip_export.modeling.checkpoint import (
    StudentSettings,
    digest_of_model,
    load_classifier,
    load_student,
    load_tokenizer,
    longest_input,
    read_config,
    resolve_model,
    save_classifier,
    save_student,
    save_tokenizer,
)
from hadskip_export.support.errors import BundleError, DataError
from tests.modeling.random_models import random_batch, random_classifier, random_fixed, random_gated

BATCH = random_batch((1, 7, 24, 12))


def assert_bit_equal(one: torch.nn.Module, other: torch.nn.Module) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def their_logits(folder: Path) -> torch.Tensor:
    """What `transformers` computes with the checkpoint; every weight of its model must be in it."""
    model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    ids, mask, types = BATCH
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=mask, token_type_ids=types).logits


# Out and back


@pytest.mark.parametrize("changes", [{}, {"activation": "relu", "layer_norm_eps": 1e-2, "num_layers": 1}])
def test_a_saved_classifier_comes_back_bit_equal_and_loads_in_transformers(changes, tmp_path):
    model = random_classifier(**changes)
    save_classifier(model, tmp_path)
    back = load_classifier(tmp_path)
    assert back.config == model.config and not back.training
    assert_bit_equal(back, model)
    torch.testing.assert_close(their_logits(tmp_path), model(*BATCH).logits.detach(), atol=1e-5, rtol=0)


def test_label_names_of_any_alphabet_survive(tmp_path):
    labels = ("négatif", "ポジティブ", "0")
    save_classifier(random_classifier(labels=labels), tmp_path)
    assert load_classifier(tmp_path).config.labels == labels
    config = BertConfig.from_pretrained(tmp_path)
    assert tuple(config.id2label.values()) == labels and config.label2id == {name: i for i, name in enumerate(labels)}


@pytest.mark.parametrize("route", [(1,), (2, 4), (1, 2, 3, 4)])
def test_a_fixed_route_comes_back_and_transformers_loads_the_whole_classifier(route, tmp_path):
    model, settings = random_fixed(route), StudentSettings(width=8, threshold=0.0, budget=len(route))
    save_student(model, settings, tmp_path)
    back, back_settings = load_student(tmp_path)
    assert back.fixed_route == route and back_settings == settings and not back.training
    assert_bit_equal(back, model)
    output = back.route(*BATCH, lambda index, margin: margin > 0)
    assert (output.gates == torch.tensor([layer in route for layer in range(1, 5)])).all()
    assert torch.equal(output.logits, model.follow(*BATCH, [route])[0].logits.detach())
    torch.testing.assert_close(their_logits(tmp_path), model.classifier(*BATCH).logits.detach(), atol=1e-5, rtol=0)


def test_equal_label_names_are_refused(tmp_path):
    with pytest.raises(DataError, match="a, a, b"):
        save_classifier(random_classifier(labels=("a", "a", "b")), tmp_path / "out")


def test_a_gated_model_comes_back_bit_equal_with_its_settings(tmp_path):
    model, settings = random_gated(width=5), StudentSettings(width=5, threshold=0.1 + 0.2, budget=2.5)
    save_student(model, settings, tmp_path)
    back, back_settings = load_student(tmp_path)
    assert back_settings == settings and not back.training
    assert back.classifier.config == model.classifier.config
    assert_bit_equal(back, model)


def test_transformers_and_we_load_a_gated_model_as_the_plain_classifier(tmp_path):
    model = random_gated()
    save_student(model, StudentSettings(8, 0.0, 4), tmp_path)
    logits = model.classifier(*BATCH).logits.detach()
    torch.testing.assert_close(their_logits(tmp_path), logits, atol=1e-5, rtol=0)
    assert torch.equal(load_classifier(tmp_path)(*BATCH).logits, logits)


# Starting a task from an encoder


@pytest.mark.parametrize("pooler", [True, False])
def test_a_bare_encoder_gets_a_fresh_seeded_head(pooler, tmp_path):
    encoder = BertModel(small_bert(), add_pooling_layer=pooler)
    encoder.save_pretrained(tmp_path)
    one, same, other = (load_classifier(tmp_path, ("no", "yes"), seed) for seed in (1, 1, 2))
    assert_bit_equal(one, same)
    assert not torch.equal(one.head.classifier.weight, other.head.classifier.weight)
    assert one.head.classifier.weight.shape == (2, 16) and one.head.classifier.weight.std() > 0
    assert torch.equal(one.embeddings.word.weight, encoder.embeddings.word_embeddings.weight)
    assert torch.equal(one.head.pooler.weight, other.head.pooler.weight) == pooler
    if pooler:
        assert torch.equal(one.head.pooler.weight, encoder.pooler.dense.weight)


def test_a_classifier_of_another_task_keeps_its_pooler_and_gets_a_fresh_classifier(tmp_path):
    old = random_classifier()
    save_classifier(old, tmp_path)
    new = load_classifier(tmp_path, ("no", "yes"))
    assert new.config.labels == ("no", "yes") and new.head.classifier.weight.shape == (2, 16)
    assert torch.equal(new.head.pooler.weight, old.head.pooler.weight)


def test_loading_draws_nothing_from_the_global_random_state(tmp_path):
    save_classifier(random_classifier(), tmp_path)
    before = torch.get_rng_state()
    load_classifier(tmp_path, ("no", "yes"), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_old_norm_names_and_shards_are_read(tmp_path):
    """What older and larger checkpoints look like: float16, `gamma` and `beta`, two files and an index."""
    model = random_classifier()
    save_classifier(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.half()
        for name, tensor in tensors.items()
    }
    files = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(old)}
    for file in set(files.values()):
        save_file({name: old[name] for name in old if files[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert_bit_equal(load_classifier(tmp_path), model.half().float())


# Refusals


def small_bert(**changes) -> BertConfig:
    sizes = {
        "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 24,
    }  # fmt: skip
    return BertConfig(**(sizes | changes))


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A sound fine-tuned classifier, as `transformers` saves it."""
    folder = tmp_path_factory.mktemp("sound")
    torch.manual_seed(0)
    BertForSequenceClassification(small_bert()).save_pretrained(folder)
    load_classifier(folder)
    return folder


@pytest.fixture
def damaged(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(sound, tmp_path / "damaged")
    return tmp_path / "damaged"


def refused(action: Callable[[], object], *names: str) -> None:
    """The action raises a one-line BundleError that has all of `names`."""
    with pytest.raises(BundleError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message


def change_config(folder: Path, **changes) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


UNSUPPORTED = [
    ({"model_type": "albert"}, "'albert'"),
    ({"model_type": "gpt2"}, "'gpt2'"),
    ({"problem_type": "regression"}, "regression to 2 numbers"),
    ({"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification"),
    ({"hidden_act": "mish"}, "'mish'"),
    ({"position_embedding_type": "relative_key"}, "'relative_key'"),
    ({"is_decoder": True}, "decoder"),
    ({"auto_map": {"AutoModel": "modeling_mine.MyModel"}}, "code of its own"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "quantised"),
    ({"problem_type": "binary"}, "problem_type 'binary'"),
]


@pytest.mark.parametrize(("changes", "cause"), UNSUPPORTED)
def test_a_fine_tuned_model_out_of_scope_is_refused_by_name(changes, cause, damaged):
    refused(lambda: load_classifier(change_config(damaged, **changes)), str(damaged), cause, "not supported")


@pytest.mark.parametrize(("changes", "cause"), [(UNSUPPORTED[i]) for i in (0, 4, 5, 6, 7)])
def test_an_encoder_out_of_scope_is_refused_by_name(changes, cause, damaged):
    refused(lambda: load_classifier(change_config(damaged, **changes), ("no", "yes")), str(damaged), cause)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": "x"}, {"num_attention_heads": 3}, {"num_hidden_layers": 0}, {"id2label": {"0": "a", "2": "b"}}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_configuration_that_makes_no_sense_is_refused(changes, damaged):
    refused(lambda: load_classifier(change_config(damaged, **changes)), str(damaged))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "3"])
def test_an_unreadable_configuration_is_refused(content, damaged):
    (damaged / "config.json").write_text(content)
    refused(lambda: load_classifier(damaged), "config.json")


@pytest.mark.parametrize("labels", [None, ("no", "yes")])
def test_an_adapter_beside_the_weights_is_refused(labels, damaged):
    """Where peft is installed `transformers` loads it with them, and gives other answers."""
    (damaged / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(lambda: load_classifier(damaged, labels), "adapter_config.json", "merge_and_unload")


def test_a_models_digest_is_of_all_that_is_read_of_it(damaged):
    def change(name: str, content: bytes) -> str:
        (damaged / name).write_bytes(content)
        return digest_of_model(damaged)

    before = digest_of_model(damaged)
    weights = (damaged / "model.safetensors").read_bytes()
    assert change("README.md", b"anything") == before
    assert change("model.safetensors", weights[:-1] + bytes([weights[-1] ^ 1])) != before
    assert change("model.safetensors", weights) == before
    assert change("vocab.txt", b"one") != before


@pytest.mark.parametrize(
    ("said", "longest"),
    [({}, 48), ({"model_max_length": 8}, 8), ({"model_max_length": 10**30}, 48), (None, 48), ({"max_len": 8}, 8)],
)
def test_a_tokenizer_may_cut_before_the_model_does(said, longest, damaged):
    if said is not None:
        (damaged / "tokenizer_config.json").write_text(json.dumps(said))
    assert longest_input(damaged, replace(read_config(damaged), max_positions=48)) == longest


def test_a_missing_configuration_is_refused(damaged):
    (damaged / "config.json").unlink()
    refused(lambda: load_classifier(damaged), str(damaged), "no config.json")


def test_pickled_weights_are_refused(damaged):
    torch.save(load_file(damaged / "model.safetensors"), damaged / "pytorch_model.bin")
    (damaged / "model.safetensors").unlink()
    refused(lambda: load_classifier(damaged), str(damaged), "pickled weights", "safe_serialization=True")


def test_missing_weights_are_refused(damaged):
    (damaged / "model.safetensors").unlink()
    refused(lambda: load_classifier(damaged), str(damaged), "no model.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights_are_refused(keep, damaged):
    file = damaged / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(lambda: load_classifier(damaged), str(file), "safetensors")


def test_a_shard_that_is_missing_is_refused(damaged):
    (damaged / "model.safetensors").rename(damaged / "a.safetensors")
    (damaged / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    )
    refused(lambda: load_classifier(damaged), "b.safetensors")


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_index_of_shards_is_refused_unless_there_is_one_file_with_all(content, damaged):
    """`transformers` looks for that one first."""
    (damaged / "model.safetensors.index.json").write_text(content)
    load_classifier(damaged)
    (damaged / "model.safetensors").rename(damaged / "a.safetensors")
    refused(lambda: load_classifier(damaged), str(damaged))


@pytest.mark.parametrize(
    "name", ["bert.encoder.layer.1.attention.self.key.bias", "classifier.weight", "bert.pooler.dense.bias"]
)
def test_a_missing_weight_is_refused(name, damaged):
    change_weights(damaged, lambda tensors: tensors.pop(name))
    refused(lambda: load_classifier(damaged), str(damaged), "lack")


@pytest.mark.parametrize(
    "name",
    ["bert.encoder.layer.1.output.dense.weight", "bert.encoder.layer.0.attention.self.key.weight", "classifier.bias"],
)
def test_a_wrong_shaped_weight_is_refused(name, damaged):
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.zeros([size + 1 for size in tensors[name].shape])

    change_weights(damaged, widen)
    refused(lambda: load_classifier(damaged), str(damaged))


QUERY = "bert.encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize("labels", [None, ("no", "yes")])
@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_a_weight_that_needs_a_scale_is_refused_whoever_brings_the_scale(kind, labels, damaged):
    change_weights(damaged, lambda tensors: tensors.update({QUERY: tensors[QUERY].to(kind)}))
    refused(lambda: load_classifier(damaged, labels), QUERY, str(kind).removeprefix("torch."), "quantised")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(value, damaged):
    change_weights(damaged, lambda tensors: tensors["classifier.bias"].__setitem__(0, value))
    refused(lambda: load_classifier(damaged), "classifier.bias", "no finite numbers")


@pytest.mark.parametrize("labels", [None, ("no", "yes")])
@pytest.mark.parametrize(
    ("name", "cause"),
    [
        (f"base_model.model.{QUERY}".replace(".weight", ".lora_A.weight"), "adapter"),
        ("bert.encoder.layer.2.output.dense.weight", "a Bert classifier does not have it"),
        (QUERY.replace("weight", "weight_scale"), "a Bert classifier does not have it"),
    ],
)
def test_a_tensor_that_nobody_would_read_is_refused(name, cause, labels, damaged):
    change_weights(damaged, lambda tensors: tensors.update({name: torch.ones(2, 2)}))
    refused(lambda: load_classifier(damaged, labels), name, cause)


def test_heads_of_pretraining_and_counted_positions_change_nothing(damaged):
    before = load_classifier(damaged)
    unused = {"cls.predictions.bias": torch.ones(50), "bert.embeddings.position_ids": torch.arange(24)[None]}
    change_weights(damaged, lambda tensors: tensors.update(unused))
    assert_bit_equal(load_classifier(damaged), before)


def test_another_head_is_refused_in_a_fine_tuned_model_and_left_behind_under_a_new_one(damaged):
    change_weights(damaged, lambda tensors: tensors.update({"qa_outputs.bias": torch.ones(2)}))
    refused(lambda: load_classifier(damaged), "qa_outputs.bias")
    assert load_classifier(damaged, ("no", "yes")).config.labels == ("no", "yes")


def test_fewer_layers_in_the_weights_than_in_the_configuration_are_refused(damaged):
    refused(lambda: load_classifier(change_config(damaged, num_hidden_layers=3)), "layers.2.")


def test_a_plain_classifier_is_no_gated_checkpoint(sound):
    refused(lambda: load_student(sound), "config.json", "'hadskip'")


@pytest.fixture
def gated_folder(tmp_path: Path) -> Path:
    save_student(random_gated(), StudentSettings(8, 0.0, 4), tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["gates.1.logits.weight", "gates.0.hidden.bias"])
def test_a_gated_checkpoint_that_lacks_a_gates_weight_is_refused(name, gated_folder):
    """Else that gate would silently be a random one."""
    change_weights(gated_folder, lambda tensors: tensors.pop(name))
    refused(lambda: load_student(gated_folder), str(gated_folder))


def test_gates_of_another_width_are_refused(gated_folder):
    section = {"gate_width": 9, "gate_threshold": 0.0, "budget": 4}
    refused(lambda: load_student(change_config(gated_folder, hadskip=section)), str(gated_folder))


@pytest.mark.parametrize("section", [{}, {"gate_width": 8}, 3])
def test_an_incomplete_section_of_gates_is_refused(section, gated_folder):
    refused(lambda: load_student(change_config(gated_folder, hadskip=section)), "config.json")


DAMAGED_ROUTES = [
    "12", 2, True, {}, {"1": 2}, [], [0, 1], [5], [1, 5], [-1], [1, 1], [2, 1], [1, 3, 2], [1.0], ["1"], [True, 2],
    [None], [[1]],
]  # fmt: skip


@pytest.mark.parametrize("route", DAMAGED_ROUTES, ids=repr)
def test_a_fixed_route_that_the_model_cannot_take_is_refused(route, tmp_path):
    save_student(random_fixed((1, 3)), StudentSettings(8, 0.0, 2), tmp_path)
    section = {"gate_width": 8, "gate_threshold": 0.0, "budget": 2, "fixed_route": route}
    refused(lambda: load_student(change_config(tmp_path, hadskip=section)), "config.json", "fixed_route")


def test_a_checkpoint_of_gates_with_a_fixed_route_written_in_is_refused(gated_folder):
    section = {"gate_width": 8, "gate_threshold": 0.0, "budget": 4, "fixed_route": [1, 3]}
    refused(lambda: load_student(change_config(gated_folder, hadskip=section)), str(gated_folder), "unexpected")


def test_a_checkpoint_that_lost_its_fixed_route_is_refused(tmp_path):
    """Else its gates would silently be random ones."""
    save_student(random_fixed((1, 3)), StudentSettings(8, 0.0, 2), tmp_path)
    section = {"gate_width": 8, "gate_threshold": 0.0, "budget": 2}
    refused(lambda: load_student(change_config(tmp_path, hadskip=section)), str(tmp_path), "lack")


# Folder, hub name, tokenizer


def test_a_folder_is_itself(tmp_path):
    assert resolve_model(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["no such model !", "/no/such/folder", "a/b/c/d"])
def test_neither_a_folder_nor_a_hub_name(name):
    refused(lambda: resolve_model(name), name, "no such folder")


def test_a_file_is_not_a_model_folder(sound):
    refused(lambda: resolve_model(sound / "config.json"), "config.json", "no such folder")


def test_the_tokenizer_is_written_as_one_file_without_padding_or_truncation(model_folder, tmp_path):
    save_tokenizer(model_folder, tmp_path / "deep" / "tokenizer.json")
    written = json.loads((tmp_path / "deep" / "tokenizer.json").read_text())
    assert written["padding"] is None and written["truncation"] is None
    assert written["model"]["type"] == "WordPiece"


def test_a_missing_tokenizer_is_refused(sound, tmp_path):
    """`transformers` makes up one of five special tokens, to which every word is unknown."""
    refused(lambda: save_tokenizer(sound, tmp_path / "tokenizer.json"), str(sound), "tokenizer")
    assert not (tmp_path / "tokenizer.json").exists()


def test_a_slow_tokenizer_is_refused(sound, tmp_path):
    """One that exists only in Python; `transformers` has no fast version of it."""
    folder = tmp_path / "prophet"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ProphetNetTokenizer"}))
    (folder / "prophetnet.tokenizer").write_text("[PAD]\n[UNK]\n[SEP]\n[X_SEP]\n[MASK]\n[CLS]\na\n")
    shutil.copy(sound / "config.json", folder)
    refused(lambda: save_tokenizer(folder, tmp_path / "tokenizer.json"), str(folder), "slow", "tokenizer.json")


def test_a_tokenizer_with_code_of_its_own_is_refused(model_folder, tmp_path):
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    file = folder / "tokenizer_config.json"
    mine = {"auto_map": {"AutoTokenizer": ["tokenization_mine.MyTokenizer", None]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | mine))
    refused(lambda: load_tokenizer(folder), str(folder), "auto_map")


def test_a_damaged_tokenizer_is_refused(sound, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    shutil.copy(sound / "config.json", tmp_path)
    refused(lambda: save_tokenizer(tmp_path, tmp_path / "out.json"), str(tmp_path), "tokenizer")


@pytest.mark.parametrize(
    ("names", "labels"), [([0, 1], ("0", "1")), ([False, True], ("False", "True")), ([0.5, 1.0], ("0.5", "1.0"))]
)
def test_label_names_that_are_no_text_become_it(names, labels, damaged):
    change_config(damaged, id2label={str(index): name for index, name in enumerate(names)})
    assert read_config(damaged).labels == labels


@pytest.mark.parametrize(
    ("id2label", "cause"),
    [
        ({"0": "a", "2": "b"}, "class 1"),
        ({"1": "a", "2": "b"}, "class 0"),
        ({"0": None, "1": "b"}, "class 0"),
        ({"0": "a", "1": ""}, "class 1"),
        ({"0": "a", "1": "a"}, "'a'"),
    ],
)
def test_label_names_that_cannot_be_are_refused_and_not_read_under_a_new_head(id2label, cause, damaged):
    change_config(damaged, id2label=id2label)
    refused(lambda: read_config(damaged), "id2label", cause)
    assert read_config(damaged, ("no", "yes")).labels == ("no", "yes")


def test_read_config_takes_the_labels_of_the_task_or_of_the_model(sound):
    assert read_config(sound).labels == ("LABEL_0", "LABEL_1")
    assert read_config(sound, ("x", "y", "z")).labels == ("x", "y", "z")
