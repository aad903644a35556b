"""RoBERTa (Liu et al., 2019), and what is named after it.

Positions count the tokens that are no padding, from the padding's id on; there are no segments; the head has two
layers of its own.
"""

from hadskip_export.modeling.families.base import EMBEDDINGS, SIZES, Family
from hadskip_export.modeling.families.bert import why_refused


def _family(model_type: str, title: str) -> Family:
    return Family(
        model_type=model_type,
        title=title,
        prefix="roberta",  # of all three
        encoder=EMBEDDINGS,
        head={"head.pooler": "classifier.dense", "head.classifier": "classifier.out_proj"},
        unused=("lm_head.", "roberta.embeddings.position_ids", "roberta.pooler."),
        sizes=SIZES | {"padding_id": "pad_token_id"},
        values={"head_drops_input": True},
        why_refused=why_refused,
    )


ROBERTA = _family("roberta", "Roberta")
XLM_ROBERTA = _family("xlm-roberta", "XLMRoberta")
CAMEMBERT = _family("camembert", "Camembert")
