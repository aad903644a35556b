"""The families of encoders that this package takes: `model_type` in config.json -> `Family`."""

from hadskip_export.modeling.families.base import Family
from hadskip_export.modeling.families.bert import BERT
from hadskip_export.modeling.families.deberta import DEBERTA
from hadskip_export.modeling.families.distilbert import DISTILBERT
from hadskip_export.modeling.families.electra import ELECTRA
from hadskip_export.modeling.families.modernbert import MODERNBERT
from hadskip_export.modeling.families.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA

FAMILIES = {
    family.model_type: family
    for family in (BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, ELECTRA, DISTILBERT, MODERNBERT, DEBERTA)
}
# Why of some that look alike none is taken.
REFUSED = {
    "deberta": "it is version 1; version 3 is called deberta-v2",
    "albert": "all its layers are one, run again and again",
    "mobilebert": "its layers are bottlenecks of four feed-forward networks",
}

__all__ = ["FAMILIES", "REFUSED", "Family"]
