"""DeBERTa as of its version 3 (He et al., 2021): attention also weighs how far apart two tokens are, by embeddings of
distances that all layers share. Version 2 has the same name in its files, and a convolution after its first layer."""

from typing import Any

from hadskip_export.modeling.encoder import ACTIVATIONS, EncoderConfig
from hadskip_export.modeling.families.base import EMBEDDINGS, SIZES, Family

# What every model of version 3 has and others have otherwise: name -> the value, and the value of one that is silent.
FIXED: dict[str, tuple[Any, Any]] = {
    "relative_attention": (True, False),
    "share_att_key": (True, False),
    "norm_rel_ebd": ("layer_norm", "none"),
    "conv_kernel_size": (0, 0),
    "pooler_dropout": (0, 0),
}
TERMS = ["c2p", "p2c"]  # the token's query with the distance's key, and the other way round


def why_refused(config: Any) -> str | None:
    for name, (value, default) in FIXED.items():
        if getattr(config, name, default) != value:
            return f"{name} {getattr(config, name, default)!r}"
    if sorted(config.pos_att_type or []) != TERMS:
        return f"pos_att_type {config.pos_att_type!r}"
    if getattr(config, "position_buckets", -1) < 2:
        return "attention to distances without position_buckets"
    for name, value in _sizes(config).items():
        if getattr(config, name, value) != value:
            return f"{name} {getattr(config, name)}"
    if config.pooler_hidden_act not in ACTIVATIONS:
        return f"the head's activation {config.pooler_hidden_act!r}"
    return None


def _sizes(config: Any) -> dict[str, int]:
    """Those that their classes would let differ, and no model has otherwise."""
    return {
        "embedding_size": config.hidden_size,
        "pooler_hidden_size": config.hidden_size,
        "attention_head_size": config.hidden_size // config.num_attention_heads,
    }


def read_more(config: Any) -> dict[str, Any]:
    most = config.max_relative_positions
    return {
        "distance_buckets": config.position_buckets,
        "most_distance": config.max_position_embeddings if most < 1 else most,
        "head_dropout": getattr(config, "cls_dropout", None),
    }


def written_more(config: EncoderConfig) -> dict[str, Any]:
    found = {name: value for name, (value, _) in FIXED.items()} | {
        "pos_att_type": TERMS,
        "position_buckets": config.distance_buckets,
        "max_relative_positions": config.most_distance,
    }
    return found if config.head_dropout is None else found | {"cls_dropout": config.head_dropout}


DEBERTA = Family(
    model_type="deberta-v2",
    title="DebertaV2",
    prefix="deberta",
    encoder=EMBEDDINGS
    | {"distances.embedding.weight": "encoder.rel_embeddings.weight", "distances.norm": "encoder.LayerNorm"},
    head={"head.pooler": "pooler.dense", "head.classifier": "classifier"},
    unused=(
        "cls.",
        "lm_predictions.",
        "mask_predictions.",
        "deberta.embeddings.position_ids",
        "deberta.embeddings.position_embeddings.",
    ),
    layer={
        "query_key_value": ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        "attention_output": ("attention.output.dense",),
        "attention_norm": ("attention.output.LayerNorm",),
        "up": ("intermediate.dense",),
        "down": ("output.dense",),
        "output_norm": ("output.LayerNorm",),
    },
    sizes={ours: theirs for ours, theirs in SIZES.items() if ours != "head_dropout"}
    | {"absolute_positions": "position_biased_input", "head_activation": "pooler_hidden_act"},
    why_refused=why_refused,
    read_more=read_more,
    written_more=written_more,
)
