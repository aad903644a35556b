"""Serving a bundle. Imports numpy, tokenizers and one engine library; never torch or transformers."""

from hadskip_export.runtime.answers import Prediction, Ranked
from hadskip_export.runtime.bundle import Bundle, read_bundle
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.support.errors import (
    BudgetError,
    BundleError,
    DataError,
    EngineError,
    HadskipError,
    RecipeError,
)

__all__ = [
    "BudgetError",
    "Bundle",
    "BundleError",
    "DataError",
    "EngineError",
    "HadskipError",
    "Prediction",
    "Predictor",
    "Ranked",
    "RecipeError",
    "read_bundle",
]
