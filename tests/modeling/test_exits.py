"""Exits against `transformers`: what its own encoder gives after each layer, through the exit's weights."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hadskip_export.modeling.checkpoint import (
    StudentSettings,
    load_classifier,
    load_student,
    save_student,
)
from hadskip_export.modeling.exits import EXIT_KINDS, TOLD, ExitClassifier, ExitKind
from hadskip_export.support.errors import BundleError
from tests.modeling.random_models import random_batch, random_classifier, randomise

BATCH = random_batch((1, 7, 24, 12))
LAYERS = 4


def random_exits(kind: ExitKind = "head", seed: int = 0, criterion: str | None = None, **changes) -> ExitClassifier:
    """Exits of random weights, each its own, but for what they share."""
    model = ExitClassifier(
        random_classifier(seed, **changes), kind, criterion or TOLD.get(kind, "entropy"), gate_width=8
    )
    randomise(model.exits, seed + 1, std=0.1 if kind in ("attention", "judged") else 0.5)
    return model.eval()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", EXIT_KINDS)
@torch.no_grad()
def test_each_exit_reads_what_its_layer_gave_and_the_last_is_the_model(kind, pooling):
    model = random_exits(kind, pooling=pooling)
    ids, mask, types = BATCH
    states = model.classifier(ids, mask, types, keep_states=True).hidden_states
    answers = model(ids, mask, types)
    assert len(answers) == LAYERS and len(model.exits) == LAYERS - 1
    for answer, leave, state in zip(answers[:-1], model.exits, states[1:-1], strict=True):
        torch.testing.assert_close(answer, leave(state, mask))
    torch.testing.assert_close(answers[-1], model.classifier(ids, mask, types).logits)
    assert [answer.shape[1] for answer in answers] == [3 + (kind in TOLD)] * (LAYERS - 1) + [3]


@pytest.mark.parametrize("kind", ["head", "linear", "certain"])
@torch.no_grad()
def test_exits_begin_as_the_models_own_head(kind):
    model = random_classifier()
    student = ExitClassifier(copy.deepcopy(model), kind, TOLD.get(kind, "entropy")).eval()
    ids, mask, types = BATCH
    for answer, state in zip(student(*BATCH), model(ids, mask, types, keep_states=True).hidden_states[1:], strict=True):
        torch.testing.assert_close(answer[:, :3], model.head(state, mask))


def test_what_exits_share_is_one_parameter():
    linear, certain = random_exits("linear"), random_exits("certain")
    assert all(leave.pooler is linear.classifier.head.pooler for leave in linear.exits)
    assert len({id(leave.classifier) for leave in linear.exits} | {id(linear.classifier.head.classifier)}) == LAYERS
    assert len({id(leave.certainty) for leave in certain.exits}) == 1
    assert all(leave.pooler is not certain.classifier.head.pooler for leave in certain.exits)


@torch.no_grad()
def test_a_certain_exit_tells_how_certain_it_is_from_what_it_classifies():
    model = random_exits("certain")
    state = model.classifier(*BATCH, keep_states=True).hidden_states[1]
    leave = model.exits[0]
    pooled = torch.tanh(F.linear(state[:, 0], leave.pooler.weight, leave.pooler.bias))
    answers = leave(state, BATCH[1])
    torch.testing.assert_close(answers[:, :3], F.linear(pooled, leave.classifier.weight, leave.classifier.bias))
    torch.testing.assert_close(answers[:, 3:], F.linear(pooled, leave.certainty.weight, leave.certainty.bias))


@torch.no_grad()
def test_a_judged_exit_is_one_of_attention_and_its_gate_sees_what_that_classifies():
    judged, plain = random_exits("judged"), random_exits("attention")
    state = judged.classifier(*BATCH, keep_states=True).hidden_states[2]
    leave = judged.exits[1]
    plain.exits[1].load_state_dict({k: v for k, v in leave.state_dict().items() if not k.startswith("gate.")})
    answers, logits = leave(state, BATCH[1]), plain.exits[1](state, BATCH[1])
    torch.testing.assert_close(answers[:, :3], logits)
    read = plain.exits[1].read(state, BATCH[1])
    torch.testing.assert_close(F.linear(read, leave.classifier.weight, leave.classifier.bias), logits)
    hidden = torch.tanh(F.linear(read, leave.gate.hidden.weight, leave.gate.hidden.bias))
    run, skip = F.linear(hidden, leave.gate.logits.weight, leave.gate.logits.bias).T
    torch.testing.assert_close(answers[:, 3], run - skip)
    assert answers[:, 3].std() > 0.01


@torch.no_grad()
def test_an_exit_of_attention_is_that_of_pytorch():
    """`nn.MultiheadAttention` of all tokens, and the first of what it gives. Its keys' bias changes nothing, and its
    values' might be that of its output."""
    model = random_exits("attention")
    leave, (_, mask, _) = model.exits[0], BATCH
    state = model.classifier(*BATCH, keep_states=True).hidden_states[1]
    oracle = nn.MultiheadAttention(128, 2, batch_first=True).eval()
    of_keys, of_values = torch.randn(2, 128)
    keys, values = leave.key.reshape(128, 128), leave.value.mT.reshape(128, 128)
    oracle.load_state_dict(
        {
            "in_proj_weight": torch.cat((leave.query.weight, keys, values)),
            "in_proj_bias": torch.cat((leave.query.bias, of_keys, of_values)),
            "out_proj.weight": leave.output.weight,
            "out_proj.bias": leave.output.bias - leave.output.weight @ of_values,
        }
    )
    narrow = torch.tanh(leave.narrow(state))
    attended, _ = oracle(narrow, narrow, narrow, key_padding_mask=mask == 0)
    expected = leave.classifier(torch.tanh(leave.dense(attended[:, 0])))
    torch.testing.assert_close(leave(state, mask), expected, atol=1e-5, rtol=1e-4)


# Out and back


@pytest.mark.parametrize("kind", EXIT_KINDS)
def test_a_saved_student_comes_back_bit_equal_and_is_a_plain_classifier_to_others(kind, tmp_path):
    model = random_exits(kind)
    save_student(model, StudentSettings(8, 0.25, 2.0), tmp_path)
    back, settings = load_student(tmp_path)
    assert isinstance(back, ExitClassifier) and (back.kind, back.criterion) == (model.kind, model.criterion)
    assert settings == StudentSettings(8, 0.25, 2.0) and not back.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    if kind == "linear":
        assert back.exits[0].pooler is back.classifier.head.pooler
    with torch.no_grad():
        torch.testing.assert_close(load_classifier(tmp_path)(*BATCH).logits, model(*BATCH)[-1])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"exits": "door"}, "'door'"),
        ({"criterion": "mood"}, "'mood'"),
        ({"criterion": "uncertainty"}, "do not go together"),
        ({"exits": "certain"}, "do not go together"),
        ({"exits": "judged"}, "do not go together"),
        ({"exits": "judged", "criterion": "uncertainty"}, "do not go together"),
        ({"exits": "judged", "criterion": "worth", "gated": True}, "do not go together"),
        ({"exits": ["head"]}, "do not go together"),
    ],
    ids=str,
)
def test_exits_that_nobody_knows_are_refused_by_name(section, message, tmp_path):
    save_student(random_exits(), StudentSettings(8, 0.25, 2.0), tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    content["hadskip"] |= section
    file.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=message) as error:
        load_student(tmp_path)
    assert str(file) in str(error.value)
