"""Every number the paper leaves open, in one frozen record that is saved with the run."""

import dataclasses
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hadskip_export.errors import RecipeError


@dataclass(frozen=True)
class Recipe:
    """Settings of the three stages. Learning rates are AdamW's peak; each falls linearly to 0 after a warm-up."""

    batch_size: int = 32
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of a phase's steps
    max_grad_norm: float = 1.0

    stage1_epochs: int = 3
    stage1_lr: float = 5e-5

    stage2_epochs: int = 1  # no budget term here, so gates drift open; a long stage II saturates them
    gate_width: int = 64
    gate_bias: float = 1.0  # initial margin: layers start out mostly run
    gate_lr: float = 1e-3  # in both stage II and stage III
    margin_limit: float = 3.0  # while exploring, margins are squashed to +-limit: no gate saturates and stops learning

    body_lr: float = 5e-5  # stage III
    epochs: int = 1  # at each budget passed through
    last_epochs: int = 3  # at the budget asked for
    estimator: str = "reinmax"  # or "ste", the ablation
    glide: float = 0.5  # share of a budget's steps that explore while the penalty's target moves there from the last
    beta: float = 1.0  # weight of the budget penalty, equation 3
    penalty_unit: str = "layers"  # (mean layers - K)^2; "share" is equation 3 as printed, L^2 times weaker
    alpha1: float = 1.0  # distillation of predictions, equation 5
    alpha2: float = 1.0  # of hidden states, equation 6
    alpha3: float = 1.0  # of attention maps, equation 7
    alpha4: float = 1.0  # of embeddings, equation 8

    def __post_init__(self) -> None:
        if self.estimator not in ("reinmax", "ste"):
            raise RecipeError(f"estimator={self.estimator}: expected reinmax or ste")
        if self.penalty_unit not in ("layers", "share"):
            raise RecipeError(f"penalty_unit={self.penalty_unit}: expected layers or share")
        for name in ("batch_size", "stage1_epochs", "epochs", "last_epochs", "gate_width"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("warmup", "glide"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name}={getattr(self, name)}: expected a share, 0 to 1")
        if not self.margin_limit > 0:
            raise RecipeError(f"margin_limit={self.margin_limit}: expected a number above 0 (inf for no limit)")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) or field.name == "margin_limit":
                continue
            if not math.isfinite(value) or (value < 0 and field.name != "gate_bias"):
                raise RecipeError(f"{field.name}={value}: expected a finite number that is not negative")


def load_recipe(file: str | Path | None = None, settings: Sequence[str] = ()) -> Recipe:
    """The default recipe, overridden by a TOML file and then by `key=value` settings.

    Raises:
        RecipeError: an unreadable file, an unknown key, or a value of the wrong kind or range.
    """
    values: dict[str, object] = {}
    if file is not None:
        try:
            values |= tomllib.loads(Path(file).read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(f"{file}: cannot be read as TOML ({error})") from error
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set {setting}: expected key=value")
        values[key.strip()] = value.strip()
    known = [field.name for field in dataclasses.fields(Recipe)]
    for key in values:
        if key not in known:
            raise RecipeError(f"no recipe setting {key!r}; there are {', '.join(known)}")
    try:
        return msgspec.convert(values, Recipe, strict=False)
    except msgspec.ValidationError as error:
        raise RecipeError(f"recipe: {error}") from error
