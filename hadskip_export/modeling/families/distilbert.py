"""DistilBERT (Sanh et al., 2019): half of BERT's layers under other names, no segments, a head with ReLU."""

from hadskip_export.modeling.families.base import EMBEDDINGS, Family

DISTILBERT = Family(
    model_type="distilbert",
    title="DistilBert",
    prefix="distilbert",
    encoder={ours: theirs for ours, theirs in EMBEDDINGS.items() if "segment" not in ours},
    head={"head.pooler": "pre_classifier", "head.classifier": "classifier"},
    unused=("vocab_transform.", "vocab_layer_norm.", "vocab_projector.", "distilbert.embeddings.position_ids"),
    layers="transformer.layer",
    layer={
        "query_key_value": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention_output": ("attention.out_lin",),
        "attention_norm": ("sa_layer_norm",),
        "up": ("ffn.lin1",),
        "down": ("ffn.lin2",),
        "output_norm": ("output_layer_norm",),
    },
    sizes={
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "max_positions": "max_position_embeddings",
        "activation": "activation",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "head_dropout": "seq_classif_dropout",
    },
    values={"type_vocab_size": 0, "head_activation": "relu", "attention_output_dropout": 0.0},
)
