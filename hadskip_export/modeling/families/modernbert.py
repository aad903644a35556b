"""ModernBERT (Warner et al., 2024): norms first, no biases, gated feed-forwards, rotated positions, and attention that
in two layers of three sees the neighbours alone."""

from typing import Any

from hadskip_export.modeling.encoder import ACTIVATIONS, EncoderConfig
from hadskip_export.modeling.families.base import Family

# Beyond most vocabularies unless they are said; the tokenizer has them.
SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
ALL, NEAR = "full_attention", "sliding_attention"  # what their configuration calls a layer's attention


def why_refused(config: Any) -> str | None:
    kinds = {parameters["rope_type"] for parameters in config.rope_parameters.values()}
    if kinds - {"default"}:
        return f"rotary positions of the kind {sorted(kinds - {'default'})[0]!r}"
    if set(config.layer_types) - {ALL, NEAR} or len(config.layer_types) != config.num_hidden_layers:
        return f"layer_types {config.layer_types} for {config.num_hidden_layers} layers"
    if config.classifier_activation not in ACTIVATIONS:
        return f"the classifier's activation {config.classifier_activation!r}"
    return None


def read_more(config: Any) -> dict[str, Any]:
    bases = tuple(float(config.rope_parameters[kind]["rope_theta"]) for kind in config.layer_types)
    windows = tuple(config.sliding_window if kind == NEAR else None for kind in config.layer_types)
    return {"rotary_bases": bases, "windows": windows}


def written_more(config: EncoderConfig) -> dict[str, Any]:
    bases, windows = config.rotary_bases or (), config.windows or ()
    kinds = [ALL if window is None else NEAR for window in windows]
    parameters = {kind: {"rope_type": "default", "rope_theta": base} for kind, base in zip(kinds, bases, strict=True)}
    near = next((window for window in windows if window is not None), None)
    found: dict[str, Any] = {"layer_types": kinds, "rope_parameters": parameters, **dict.fromkeys(SPECIAL_TOKENS)}
    return found if near is None else found | {"local_attention": 2 * near}


MODERNBERT = Family(
    model_type="modernbert",
    title="ModernBert",
    prefix="model",
    encoder={
        "embeddings.word.weight": "embeddings.tok_embeddings.weight",
        "embeddings.norm": "embeddings.norm",
        "head.states_norm": "final_norm",
    },
    head={"head.pooler": "head.dense", "head.pooled_norm": "head.norm", "head.classifier": "classifier"},
    unused=("decoder.",),
    layers="layers",
    layer={
        "query_key_value": ("attn.Wqkv",),
        "attention_output": ("attn.Wo",),
        "attention_norm": ("attn_norm",),
        "up": ("mlp.Wi",),
        "down": ("mlp.Wo",),
        "output_norm": ("mlp_norm",),
    },
    sizes={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "max_positions": "max_position_embeddings",
        "activation": "hidden_activation",
        "layer_norm_eps": "norm_eps",
        "dropout": "mlp_dropout",
        "embedding_dropout": "embedding_dropout",
        "attention_dropout": "attention_dropout",
        "attention_output_dropout": "attention_dropout",
        "head_dropout": "classifier_dropout",
        "head_activation": "classifier_activation",
        "attention_bias": "attention_bias",
        "feed_forward_bias": "mlp_bias",
        "norm_bias": "norm_bias",
        "pooler_bias": "classifier_bias",
        "pooling": "classifier_pooling",
    },
    values={"type_vocab_size": 0, "absolute_positions": False, "pre_norm": True, "gated": True, "head_norm": True},
    why_refused=why_refused,
    read_more=read_more,
    written_more=written_more,
)
