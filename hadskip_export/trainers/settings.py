"""Which settings of a recipe a training reads, so that one that is given for nothing is named."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hadskip_export.support.progress import say
from hadskip_export.trainers.methods import create_method
from hadskip_export.trainers.recipe import Recipe, load_recipe, names_of

if TYPE_CHECKING:
    from hadskip_export.trainers.methods.base import Method

ALWAYS = frozenset(
    (
        "batch_size", "accumulate", "weight_decay", "warmup", "max_grad_norm", "precision", "threshold_on",
        "routing",  # names HadSkip's method, and says how many epochs its rivals have
    )
)  # fmt: skip
STAGE1 = frozenset(("stage1_epochs", "stage1_lr"))
GATES = frozenset(("gate_width", "gate_bias"))
EXPLORED = frozenset(("gate_lr", "margin_limit", "estimator"))  # while gates learn by gradients through decisions
FITTED = frozenset(("layer_price", "fit_rows", "fit_steps", "fit_lr", "fit_weight_decay", "fit_dropout"))
SCHEDULED = frozenset(("schedule", "schedule_step", "epochs", "last_epochs"))
DISTILLED = frozenset(("alpha1", "alpha2", "alpha3", "alpha4"))


def of_length(recipe: Recipe) -> frozenset[str]:
    """Those that say how long stage III is, see `schedule.all_epochs`."""
    if recipe.routing == "joint":
        return SCHEDULED
    return frozenset(("body",)) | (SCHEDULED if recipe.body == "dedicated" else {"shared_epochs"})


def read_by(method: "Method", recipe: Recipe, *, fine_tuned: bool) -> frozenset[str]:
    """Those that a training comes of. `fine_tuned`: without stage I."""
    return ALWAYS | method.settings(recipe) | (frozenset() if fine_tuned else STAGE1)


def those_read(
    settings: Sequence[str], method_name: str, recipe: str | Path | None, *, fine_tuned: bool
) -> tuple[str, ...]:
    """Of settings that several methods share, `key=value`, those that one of them reads."""
    chosen = load_recipe(recipe, settings)
    read = read_by(create_method(method_name, chosen, {}), chosen, fine_tuned=fine_tuned)
    return tuple(setting for name, setting in zip(names_of(settings), settings, strict=True) if name in read)


def say_unread(settings: Sequence[str], method: "Method", recipe: Recipe, *, fine_tuned: bool) -> None:
    """Says which of `settings` change nothing here: a line for all, as for trainings of several kinds, is no error.

    Args:
        settings: `key=value`, as they were given, not those of a recipe's file.
    """
    read = read_by(method, recipe, fine_tuned=fine_tuned)
    unread = [name for name in dict.fromkeys(names_of(settings)) if name not in read]
    for names, why in (
        ([name for name in unread if name in STAGE1], "with --fine-tuned, where there is no stage I"),
        ([name for name in unread if name not in STAGE1], "with this method and recipe"),
    ):
        if names:
            say(f"--set {', '.join(names)}: {'changes' if len(names) == 1 else 'change'} nothing {why}")
