"""Serving a bundle. Imports numpy, tokenizers and one engine library; never torch or transformers."""

from hadskip_export.runtime.bundle import Bundle, read_bundle
from hadskip_export.runtime.predictor import Prediction, Predictor
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
    "RecipeError",
    "read_bundle",
]
