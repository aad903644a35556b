"""Every family equals `transformers`: the answers, what happens on the way, and the checkpoint that is written."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

from hadskip_export.modeling.checkpoint import load_classifier, read_config, save_classifier
from hadskip_export.modeling.encoder import Classifier
from hadskip_export.modeling.families import FAMILIES, Family
from hadskip_export.modeling.families.base import EMBEDDINGS, SIZES
from hadskip_export.support.errors import BundleError
from tests.modeling.random_families import (
    POSITIONS,
    VARIANTS,
    VOCABULARY,
    their_classifier,
    their_config,
    their_inputs,
)

LENGTHS = (1, 7, 18, 12)
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
OLD = ("bert", "distilbert", "electra", "modernbert", "deberta-v2")  # whose positions count everything
variants = pytest.mark.parametrize("variant", VARIANTS)


def random_inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of every id there is, so of padding's, too, amid the real tokens; what lies behind them is random as well."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(LENGTHS), max(LENGTHS))
    ids = torch.randint(VOCABULARY, shape, generator=generator)
    ids[1, 2] = ids[2, 5] = 1  # padding of most families that have one
    types = torch.randint(2, shape, generator=generator)
    return ids, (torch.arange(shape[1])[None] < torch.tensor(LENGTHS)[:, None]).long(), types


def assert_same(ours: Classifier, theirs: torch.nn.Module) -> None:
    ids, mask, types = random_inputs()
    with torch.no_grad():
        got = ours(ids, mask, types, keep_states=True)
        wanted = theirs(**their_inputs(theirs, ids, mask, types), output_hidden_states=True, output_attentions=True)
    real = mask.bool()
    assert wanted.logits.std() > 0.05
    torch.testing.assert_close(got.logits, wanted.logits, **TOLERANCE)
    assert len(got.hidden_states) == len(wanted.hidden_states)
    states = [
        *got.hidden_states[:-1],
        ours.head.states_norm(got.hidden_states[-1]),
    ]  # theirs has the norm in the last one
    for hidden, expected in zip(states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(hidden[real], expected[real], **TOLERANCE)
    for attention, expected in zip(got.attention_maps, wanted.attentions, strict=True):
        torch.testing.assert_close(attention[real], expected.mean(dim=1)[real], **TOLERANCE)


def test_every_family_has_a_variant_here():
    assert {settings["model_type"] for settings in VARIANTS.values()} == set(FAMILIES)


@variants
def test_logits_hidden_states_and_attention_maps_equal_those_of_transformers(variant: str, tmp_path: Path):
    theirs = their_classifier(variant)
    theirs.save_pretrained(tmp_path)
    assert_same(load_classifier(tmp_path), theirs)


@variants
def test_what_is_written_is_the_same_checkpoint_and_loads_as_its_own_class(variant: str, tmp_path: Path):
    theirs = their_classifier(variant, classifier_dropout=0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_classifier(tmp_path / "theirs")
    save_classifier(ours, tmp_path / "ours")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert set(before) - set(after) <= {name for name in before if name.startswith(FAMILIES[ours.config.family].unused)}
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert type(again) is type(theirs)
    assert_same(ours, again)
    old, new = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours"))
    fields = [*FAMILIES[ours.config.family].sizes.values(), "model_type", "architectures", "id2label"]
    assert {name: new.get(name) for name in fields} == {name: old.get(name) for name in fields}
    assert read_config(tmp_path / "ours") == ours.config


@variants
def test_a_bare_encoder_gets_a_new_head_and_keeps_the_rest(variant: str, tmp_path: Path):
    torch.manual_seed(0)
    theirs = AutoModel.from_config(their_classifier(variant).config, attn_implementation="eager").eval()
    theirs.save_pretrained(tmp_path)
    ours = load_classifier(tmp_path, ("no", "yes"))
    ids, mask, types = random_inputs(1)
    with torch.no_grad():
        got = ours(ids, mask, types, keep_states=True)
        wanted = theirs(**their_inputs(theirs, ids, mask, types)).last_hidden_state
    last = ours.head.states_norm(got.hidden_states[-1])
    torch.testing.assert_close(last[mask.bool()], wanted[mask.bool()], **TOLERANCE)
    assert got.logits.shape == (len(LENGTHS), 2)
    with pytest.raises(BundleError, match="has no classifier of its own"):
        load_classifier(tmp_path)
    with pytest.raises(BundleError, match="the weights lack"):
        load_classifier(without_architecture(tmp_path))


def without_architecture(folder: Path) -> Path:
    """`transformers` loads it as what it is asked for."""
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@variants
def test_a_classifier_need_not_be_called_so(variant: str, tmp_path: Path):
    theirs = their_classifier(variant)
    theirs.save_pretrained(tmp_path)
    named = load_classifier(tmp_path)
    ours = load_classifier(without_architecture(tmp_path))
    assert ours.config == named.config
    ids, mask, types = random_inputs(1)
    with torch.no_grad():
        wanted = theirs(**their_inputs(theirs, ids, mask, types)).logits
        torch.testing.assert_close(ours(ids, mask, types).logits, wanted, **TOLERANCE)


@variants
def test_a_longest_input_fits_and_the_configuration_knows_it(variant: str, tmp_path: Path):
    theirs = their_classifier(variant)
    theirs.save_pretrained(tmp_path)
    ours = load_classifier(tmp_path)
    most = ours.config.most_tokens
    offset = 0 if ours.config.family in OLD else theirs.config.pad_token_id + 1
    assert most == POSITIONS - offset
    ids = torch.full((1, most), 9)
    ones, zeros = torch.ones_like(ids), torch.zeros_like(ids)
    with torch.no_grad():
        wanted = theirs(**their_inputs(theirs, ids, ones, zeros)).logits
        torch.testing.assert_close(ours(ids, ones, zeros).logits, wanted, **TOLERANCE)


@variants
def test_dropout_is_where_theirs_is(variant: str, tmp_path: Path):
    """The same numbers vanish, for they are drawn in the same order; every place has a rate of its own."""
    theirs = their_classifier(variant)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    sizes = FAMILIES[config["model_type"]].sizes
    rates = {"dropout": 0.1, "attention_dropout": 0.2, "head_dropout": 0.5, "embedding_dropout": 0.3}
    config |= {sizes[ours]: rate for ours, rate in rates.items() if ours in sizes}
    file.write_text(json.dumps(config))
    ours = load_classifier(tmp_path).train()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager").train()
    ids, mask, types = random_inputs()
    torch.manual_seed(3)
    wanted = again(**their_inputs(again, ids, mask, types)).logits
    torch.manual_seed(3)
    torch.testing.assert_close(ours(ids, mask, types).logits, wanted, **TOLERANCE)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("albert", "all its layers are one"), ("mobilebert", "bottlenecks"), ("xlnet", "not supported")],
)
def test_other_architectures_are_refused_by_name(model_type: str, reason: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(BundleError, match=model_type) as error:
        read_config(tmp_path, ("no", "yes"))
    assert reason in str(error.value) and "distilbert" in str(error.value)


REFUSED = [
    ("deberta-v2", {"relative_attention": False}, "relative_attention False"),
    ("deberta-v2", {"share_att_key": False}, "share_att_key False"),
    ("deberta-v2", {"norm_rel_ebd": "none"}, "norm_rel_ebd 'none'"),
    ("deberta-v2", {"conv_kernel_size": 3}, "conv_kernel_size 3"),
    ("deberta-v2", {"pooler_dropout": 0.1}, "pooler_dropout 0.1"),
    ("deberta-v2", {"pos_att_type": ["c2p"]}, r"pos_att_type \['c2p'\]"),
    ("deberta-v2", {"position_buckets": -1}, "without position_buckets"),
    ("deberta-v2", {"embedding_size": 12}, "embedding_size 12"),
    ("deberta-v2", {"pooler_hidden_act": "gelu_fast"}, "activation 'gelu_fast'"),
    ("modernbert", {"classifier_activation": "gelu_fast"}, "activation 'gelu_fast'"),
    ("modernbert", {"layer_types": ["full_attention"]}, "cannot be read"),
    ("roberta", {"position_embedding_type": "relative_key"}, "position embedding 'relative_key'"),
    ("distilbert", {"activation": "gelu_fast"}, "activation 'gelu_fast'"),
]


@pytest.mark.parametrize(("variant", "changes", "reason"), REFUSED)
def test_what_a_family_may_have_and_nobody_here_computes_is_refused(
    variant: str, changes: dict, reason: str, tmp_path: Path
):
    their_config(variant).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(BundleError, match=reason):
        read_config(tmp_path, ("no", "yes"))


@variants
def test_a_tensor_that_nobody_would_read_is_refused_in_every_family(variant: str, tmp_path: Path):
    theirs = their_classifier(variant)
    prefix = FAMILIES[theirs.config.model_type].prefix
    theirs.save_pretrained(tmp_path, state_dict=theirs.state_dict() | {f"{prefix}.extra.weight": torch.zeros(3)})
    for labels in (None, ("no", "yes")):
        with pytest.raises(BundleError, match=rf"{prefix}\.extra\.weight"):
            load_classifier(tmp_path, labels)


def test_the_next_family_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As CONTRIBUTING.md has it. Data2Vec's text model is one that nobody has asked for yet."""
    family = Family(
        model_type="data2vec-text",
        title="Data2VecText",
        prefix="data2vec_text",
        encoder=EMBEDDINGS,
        head={"head.pooler": "classifier.dense", "head.classifier": "classifier.out_proj"},
        unused=("lm_head.", "data2vec_text.pooler."),
        sizes=SIZES | {"padding_id": "pad_token_id"},
        values={"head_drops_input": True},
    )
    settings = VARIANTS["roberta"] | {"model_type": family.model_type}
    monkeypatch.setitem(VARIANTS, family.model_type, settings)
    theirs = their_classifier(family.model_type)
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(BundleError, match="data2vec-text"):
        load_classifier(tmp_path / "theirs")
    monkeypatch.setitem(FAMILIES, family.model_type, family)
    ours = load_classifier(tmp_path / "theirs")
    assert_same(ours, theirs)
    save_classifier(ours, tmp_path / "ours")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert type(again) is type(theirs)
    assert_same(ours, again)
