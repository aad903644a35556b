"""BERT (Devlin et al., 2019), and all that has its shape: TinyBERT, MiniLM, E5."""

from typing import Any

from hadskip_export.modeling.families.base import EMBEDDINGS, Family


def why_refused(config: Any) -> str | None:
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        return f"position embedding {config.position_embedding_type!r}"
    return None


BERT = Family(
    model_type="bert",
    title="Bert",
    prefix="bert",
    encoder=EMBEDDINGS | {"head.pooler": "pooler.dense"},
    head={"head.classifier": "classifier"},
    unused=("cls.", "bert.embeddings.position_ids"),
    why_refused=why_refused,
)
