"""ELECTRA (Clark et al., 2020): embeddings of their own width, projected; a head with an activation of its own."""

from hadskip_export.modeling.families.base import EMBEDDINGS, SIZES, Family
from hadskip_export.modeling.families.bert import why_refused

ELECTRA = Family(
    model_type="electra",
    title="Electra",
    prefix="electra",
    encoder=EMBEDDINGS | {"embeddings.projection": "embeddings_project"},
    head={"head.pooler": "classifier.dense", "head.classifier": "classifier.out_proj"},
    unused=(
        "discriminator_predictions.",
        "generator_predictions.",
        "generator_lm_head.",
        "electra.embeddings.position_ids",
    ),
    sizes=SIZES | {"embedding_size": "embedding_size"},
    values={"head_activation": "gelu", "head_drops_input": True},
    why_refused=why_refused,
)
