"""The table of training methods. A method's module, and torch with it, is imported when the method is asked for."""

import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from hadskip_export.support.errors import RecipeError
from hadskip_export.trainers.recipe import Recipe

if TYPE_CHECKING:
    from hadskip_export.trainers.methods.base import Method

HADSKIP = "hadskip"  # the method of this name is the one that the recipe's `routing` names

# name -> module:class. To add a method: one file here, one line there.
METHODS = {
    "joint": "hadskip_export.trainers.methods.joint:Joint",
    "nested": "hadskip_export.trainers.methods.nested:Nested",
    "upfront": "hadskip_export.trainers.methods.upfront:Upfront",
    "budgeted": "hadskip_export.trainers.methods.budgeted:Budgeted",
    "static": "hadskip_export.trainers.methods.static:Static",
    "branchynet": "hadskip_export.trainers.methods.branchynet:BranchyNet",
    "shallow-deep": "hadskip_export.trainers.methods.shallow_deep:ShallowDeep",
    "berxit": "hadskip_export.trainers.methods.berxit:Berxit",
    "pabee": "hadskip_export.trainers.methods.pabee:Pabee",
    "leebert": "hadskip_export.trainers.methods.leebert:LeeBert",
    "pcee": "hadskip_export.trainers.methods.pcee:Pcee",
    "deebert": "hadskip_export.trainers.methods.deebert:DeeBert",
    "fastbert": "hadskip_export.trainers.methods.fastbert:FastBert",
    "judged": "hadskip_export.trainers.methods.judged:Judged",
    "smartbert": "hadskip_export.trainers.methods.smartbert:SmartBert",
}

# Systems that have no place here, and why.
REFUSED = {
    "sentee": "its windows are of tokens, for tagging; of whole texts it is an exit that is left by its uncertainty,"
    " which is branchynet",
}


def create_method(name: str, recipe: Recipe, options: Mapping[str, object]) -> "Method":
    """
    Args:
        options: what was asked for of methods, by the name of the option; None where it was left out.

    Raises:
        RecipeError: no such method, or an option that it has no use for.
    """
    if name in REFUSED:
        raise RecipeError(f"--method {name}: {REFUSED[name]}")
    if name not in (HADSKIP, *METHODS):
        raise RecipeError(f"--method {name}: not known; there are {', '.join((HADSKIP, *METHODS))}")
    of = _method_class(recipe.routing if name == HADSKIP else name)
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in _options(of):
            takers = " or ".join(other for other in METHODS if option in _options(_method_class(other)))
            raise RecipeError(f"--{option} goes with --method {takers}, not with {name}")
    return of(**given)


def _method_class(name: str) -> Any:
    module, _, attribute = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _options(method_class: Any) -> list[str]:
    return [field.name for field in fields(method_class)]
