"""Every number the paper leaves open, in one frozen record that is saved with the run."""

import dataclasses
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec

from hadskip_export.support.errors import RecipeError
from hadskip_export.support.values import several

DEFAULT = "adaptive"
SHIPPED = ("paper", "adaptive")


@dataclass(frozen=True)
class Recipe:
    """Settings of the three stages. Their values are in recipes/*.toml; docs/method.md says what each was seen to do.

    Learning rates are AdamW's peak; each falls linearly to 0 after a warm-up.
    """

    # All stages
    batch_size: int
    accumulate: int  # batches whose mean gradient makes one step of the optimiser
    weight_decay: float
    warmup: float  # share of a phase's steps
    max_grad_norm: float
    precision: Literal["fp32", "bf16"]  # of matrix products in training; weights, losses and evaluation are fp32
    threshold_on: Literal["evaluation", "held-out"]  # whose texts, never labels, the mean layers are met on

    # Stage I
    stage1_epochs: int
    stage1_lr: float

    # Gates, and stage II
    gate_width: int
    gate_bias: float  # initial margin in logits; above 0, layers start out mostly run
    gate_lr: float  # in stage II and, of joint routing, in stage III
    stage2_epochs: int  # 0 leaves gate initialisation out
    margin_limit: float  # while exploring, margins are squashed to +-limit: no gate saturates and stops learning

    # Stage III
    # What --method hadskip is: gates learn with the body (the paper), or after it, on routes it was taught.
    routing: Literal["joint", "nested"]
    schedule: Literal["homotopic", "direct"]  # through every budget on the way, or straight to the one asked for
    schedule_step: float  # layers from one budget to the next
    body_lr: float
    exit_lr: float  # of exits that learn beside a body that stays as it is
    epochs: int  # at each budget passed through
    last_epochs: int  # at the budget asked for
    alpha1: float  # distillation of predictions, equation 5
    alpha2: float  # of hidden states, equation 6
    alpha3: float  # of attention maps, equation 7
    alpha4: float  # of embeddings, equation 8

    # Joint routing
    estimator: Literal["reinmax", "ste"]
    glide: float  # share of a budget's steps that explore while the penalty's target moves there from the last
    beta: float  # weight of the budget penalty, equation 3
    penalty_unit: Literal["layers", "share"]  # (mean layers - K)^2; "share" is equation 3 as printed, L^2 times weaker

    # Nested routing
    body: Literal["shared", "dedicated"]  # one for all budgets, taught every size; or one for each of the schedule
    shared_epochs: int  # of a shared body
    family: Literal["nested", "prefix", "all"]  # layers 1..k-1 and the last; layers 1..k; every set of k layers
    family_spread: int  # sizes k that a dedicated body is taught: those within so many layers of the budget
    layer_price: float  # what running a layer costs a gate, in nats of divergence from the teacher
    fit_rows: int  # training rows the gates are fitted on, at most
    fit_steps: int
    fit_lr: float
    fit_weight_decay: float
    fit_dropout: float  # of a gate's input while it is fitted

    @property
    def distils_states(self) -> bool:
        """Whether the student learns from more of the teacher than its predictions."""
        return bool(self.alpha2 or self.alpha3 or self.alpha4)

    def __post_init__(self) -> None:
        for name in (
            "batch_size", "accumulate", "stage1_epochs", "epochs", "last_epochs", "shared_epochs", "gate_width",
            "fit_rows", "fit_steps",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("warmup", "glide"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name}={getattr(self, name)}: expected a share, 0 to 1")
        if not 0 <= self.fit_dropout < 1:
            raise RecipeError(f"fit_dropout={self.fit_dropout}: expected a share, 0 to 1, without 1")
        if not self.margin_limit > 0:
            raise RecipeError(f"margin_limit={self.margin_limit}: expected a number above 0 (inf for no limit)")
        if not self.schedule_step > 0:
            raise RecipeError(f"schedule_step={self.schedule_step}: expected a number of layers above 0")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) or field.name == "margin_limit":
                continue
            if not math.isfinite(value) or (value < 0 and field.name != "gate_bias"):
                raise RecipeError(f"{field.name}={value}: expected a finite number that is not negative")


def load_recipe(recipe: str | Path | None = None, settings: Sequence[str] = ()) -> Recipe:
    """A recipe, overridden by `key=value` settings.

    Args:
        recipe: one that ships (`paper`, `adaptive`), or a TOML file, whose `extends` names the one that it changes;
            the default one if left out, in both places.

    Raises:
        RecipeError: an unreadable file, an unknown key, or a value of the wrong kind or range.
    """
    name = str(recipe or DEFAULT)
    values = _shipped(name) if name in SHIPPED else _from_file(Path(name))
    for key, setting in zip(names_of(settings), settings, strict=True):
        values[key] = setting.partition("=")[2].strip()
    known = [field.name for field in dataclasses.fields(Recipe)]
    for key in values:
        if key not in known:
            raise RecipeError(f"no recipe setting {key!r}; there are {', '.join(known)}")
    try:
        return msgspec.convert(values, Recipe, strict=False)
    except msgspec.ValidationError as error:
        raise RecipeError(f"recipe: {error}") from error


def names_of(settings: Sequence[str]) -> list[str]:
    """
    Args:
        settings: `key=value`, of which these are the keys.

    Raises:
        RecipeError: one is something else.
    """
    names = []
    for setting in several("settings", settings):
        name, equals, _ = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set {setting}: expected key=value")
        names.append(name.strip())
    return names


def _shipped(name: str) -> dict[str, object]:
    return tomllib.loads(resources.files("hadskip_export.trainers").joinpath("recipes", f"{name}.toml").read_text())


def _from_file(file: Path) -> dict[str, object]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
        what = f"--recipe takes {', '.join(SHIPPED)} or a TOML file" if not file.suffix else "cannot be read as TOML"
        raise RecipeError(f"{file}: {what} ({error})") from error
    base = values.pop("extends", DEFAULT)
    if base not in SHIPPED:
        raise RecipeError(f"{file}: extends = {base!r}; there are {', '.join(SHIPPED)}")
    return _shipped(base) | values
