"""Who takes part: every method, in one or two tracks, with every seed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hadskip_export.comparison.figures import system_of
from hadskip_export.routing.budgets import budget_name
from hadskip_export.support.errors import BudgetError, RecipeError
from hadskip_export.support.values import several
from hadskip_export.trainers.methods import HADSKIP, METHODS, create_method
from hadskip_export.trainers.recipe import DEFAULT, SHIPPED, Recipe, load_recipe
from hadskip_export.trainers.settings import those_read

OURS = (DEFAULT, *(name for name in SHIPPED if name != DEFAULT))  # recipes of HadSkip's own methods
NAMES = (*OURS, *(name for name in METHODS if name not in ("joint", "nested")))
UNTAUGHT = tuple(f"alpha{number}=0" for number in range(1, 5))  # no term of distillation


@dataclass(frozen=True)
class Entrant:
    """One training.

    Args:
        name: one of `NAMES`.
        published: without a teacher, as most authors had it; else distilled as all others are.
        seed: of the split, the order of the texts and dropout.
        budget: of a method that is trained for each by itself; None where one run keeps all of them.
    """

    name: str
    published: bool
    seed: int
    budget: float | None = None

    @property
    def system(self) -> str:
        return system_of(self.name, self.published)

    @property
    def file(self) -> str:
        """What its run and its figures are called."""
        parts = (self.name, "published" if self.published else "", f"s{self.seed}")
        return "-".join(filter(None, (*parts, "" if self.budget is None else budget_name(self.budget))))

    @property
    def method(self) -> str:
        return HADSKIP if self.name in OURS else self.name

    def recipe(self, recipe: str | None) -> str | None:
        return self.name if self.name in OURS else recipe

    def settings(self, recipe: str | None, settings: Sequence[str], *, fine_tuned: bool) -> tuple[str, ...]:
        """Those that it reads. Thresholds are set on held-out texts of the training data, unless they say otherwise."""
        every = ("threshold_on=held-out", *settings, *(UNTAUGHT if self.published else ()))
        return those_read(every, self.method, self.recipe(recipe), fine_tuned=fine_tuned)


def entrants(
    names: Sequence[str], budgets: Sequence[float], seeds: int, recipe: str | None, published: bool
) -> list[Entrant]:
    """All of them, seed by seed, so that a comparison that is stopped has whole ones.

    Raises:
        RecipeError: a name that is not known, or is there twice; no seed.
        BudgetError: no budget, or one that is no whole number of layers, which some methods cannot have.
    """
    names, budgets = several("methods", names), several("budgets", budgets)
    for name in names:
        if name not in NAMES:
            raise RecipeError(f"--method {name}: not known; there are {', '.join(NAMES)}")
    if len(set(names)) < len(names) or not names:
        raise RecipeError(f"--method: each of {', '.join(NAMES)} once")
    if seeds < 1:
        raise RecipeError(f"--seeds {seeds}: expected at least 1")
    if not budgets or not all(budget >= 1 and float(budget).is_integer() for budget in budgets):
        raise BudgetError("--budget: a comparison takes whole numbers of layers, at least one of them")
    if len(set(budgets)) < len(budgets):
        raise BudgetError("--budget: each once")
    found = []
    for seed in range(seeds):
        for name in names:
            plain = Entrant(name, False, seed)
            tracks = [plain]
            if published and _has_a_track_of_its_own(plain, load_recipe(recipe)):
                tracks.append(replace(plain, published=True))
            for one in tracks:
                each = _is_of_one_budget(one, load_recipe(one.recipe(recipe)))
                found += [replace(one, budget=budget) for budget in budgets] if each else [one]
    return found


def _is_of_one_budget(entrant: Entrant, recipe: Recipe) -> bool:
    return not create_method(entrant.method, recipe, {}).fits_threshold


def _has_a_track_of_its_own(entrant: Entrant, recipe: Recipe) -> bool:
    """Neither what nobody has published nor what learns from the teacher alone."""
    if entrant.name in (*OURS, "upfront", "static"):
        return False
    return getattr(create_method(entrant.method, recipe, {}), "learns_labels", True)
