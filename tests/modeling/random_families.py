"""A classifier of every family, as `transformers` has it: odd sizes, random weights."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.modeling.random_models import randomise

VOCABULARY, POSITIONS, CLASSES = 50, 24, 3
_LIKE_BERT: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40,
}  # fmt: skip
_ROBERTA = _LIKE_BERT | {"type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_MODERN = _LIKE_BERT | {
    "model_type": "modernbert", "num_hidden_layers": 4, "local_attention": 6, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip
_DEBERTA = _LIKE_BERT | {
    "model_type": "deberta-v2", "relative_attention": True, "position_buckets": 6, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
# Name of a variant -> its configuration.
VARIANTS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", **_LIKE_BERT, "layer_norm_eps": 1e-2},
    "bert, relu": {"model_type": "bert", **_LIKE_BERT, "hidden_act": "relu"},
    "bert, gelu_new": {"model_type": "bert", **_LIKE_BERT, "hidden_act": "gelu_new"},
    "bert, silu": {"model_type": "bert", **_LIKE_BERT, "hidden_act": "silu"},
    "bert, one segment": {"model_type": "bert", **_LIKE_BERT, "type_vocab_size": 1},
    "roberta": {"model_type": "roberta", **_ROBERTA, "hidden_act": "gelu_pytorch_tanh"},
    "roberta, two segments": {"model_type": "roberta", **_ROBERTA, "type_vocab_size": 2, "pad_token_id": 5},
    "xlm-roberta": {"model_type": "xlm-roberta", **_ROBERTA},
    "camembert": {"model_type": "camembert", **_ROBERTA},
    "electra": {"model_type": "electra", **_LIKE_BERT, "embedding_size": 10},
    "electra, no projection": {"model_type": "electra", **_LIKE_BERT, "embedding_size": 24, "hidden_act": "relu"},
    "distilbert": {"model_type": "distilbert", "dim": 24, "n_layers": 3, "n_heads": 3, "hidden_dim": 40},
    "distilbert, relu": {
        "model_type": "distilbert", "dim": 24, "n_layers": 1, "n_heads": 4, "hidden_dim": 40, "activation": "relu",
    },
    "modernbert": _MODERN | {"classifier_pooling": "cls"},
    "modernbert, mean": _MODERN | {"classifier_pooling": "mean", "classifier_activation": "silu"},
    "modernbert, biases": _MODERN | {
        "attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True, "local_attention": 2,
        "hidden_activation": "silu", "norm_eps": 1e-2,
    },
    "modernbert, near alone": _MODERN | {"layer_types": ["sliding_attention"] * 4, "local_attention": 12},
    "deberta-v2": _DEBERTA,
    "deberta-v2, positions": _DEBERTA | {
        "position_biased_input": True, "type_vocab_size": 2, "pooler_hidden_act": "tanh", "layer_norm_eps": 1e-2,
        "pos_att_type": "c2p|p2c", "max_relative_positions": 10, "position_buckets": 5, "cls_dropout": 0.4,
    },
    "deberta-v2, every distance its own": _DEBERTA | {"position_buckets": 60, "pooler_hidden_act": "gelu_new"},
    "modernbert, all": _MODERN | {"layer_types": ["full_attention"] * 4, "classifier_pooling": "mean"},
}  # fmt: skip


def their_config(variant: str, **changes: Any) -> Any:
    settings = VARIANTS[variant] | {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS} | changes
    labels = {index: f"label {index}" for index in range(CLASSES)}
    return AutoConfig.for_model(**settings, id2label=labels, label2id={name: i for i, name in labels.items()})


def their_classifier(variant: str, seed: int = 0, **changes: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(
        their_config(variant, **changes), attn_implementation="eager"
    )
    randomise(model, seed + 1)
    return model.eval()


def their_inputs(model: torch.nn.Module, ids: Tensor, mask: Tensor, types: Tensor) -> dict[str, Tensor]:
    """Of what a batch has, what the model takes."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs | ({"token_type_ids": types} if getattr(model.config, "type_vocab_size", 0) > 1 else {})
