"""The recipes that `finetune.search` tries: a short list fixed beforehand, the simplest first.

Each says what it changes of the settings as they were written. What an earlier recipe on the list trains already, since
the settings have it, is not tried again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.settings.training import FinetuneSettings

LONGER = 3
GENTLER = 1 / 3
# Largest changes, each where the settings have less.
STRONGER = {"rotate_degrees": 15.0, "scale": 0.1, "translate": 0.05, "contrast": 0.2, "brightness": 0.2}


@dataclass(frozen=True)
class Recipe:
    """A change of settings by its name, and in words as the report says it.

    `epochs` and `rate` are factors, `stronger` is about augmentation, `pooling` is what the head is given.
    """

    name: str
    words: str
    epochs: int = 1
    rate: float = 1.0
    stronger: bool = False
    pooling: str | None = None

    def applied(self, settings: FinetuneSettings) -> FinetuneSettings:
        """Return the settings with this recipe's changes, without the search."""
        now = settings.augmentation
        more: dict[str, Any] = {name: max(value, getattr(now, name)) for name, value in STRONGER.items()}
        changes: dict[str, Any] = {
            "epochs": settings.epochs * self.epochs,
            "warmup_epochs": settings.warmup_epochs * self.epochs,
            "max_steps": settings.max_steps and settings.max_steps * self.epochs,
            "learning_rate": settings.learning_rate * self.rate,
            "augmentation": now.model_copy(update=more) if self.stronger else now,
            "pooling": self.pooling or settings.pooling,
            "search": None,
        }
        return settings.model_copy(update=changes)


RECIPES = (
    Recipe("as_configured", "the settings as they were written"),
    Recipe("gentler", "a third of the learning rate", rate=GENTLER),
    Recipe("stronger", "stronger augmentation", stronger=True),
    Recipe("attention", "a head that reads by learned queries", pooling="attention"),
    Recipe("longer", f"{LONGER} times the epochs", epochs=LONGER),
    Recipe(
        "longer_stronger", f"{LONGER} times the epochs, stronger augmentation", epochs=LONGER, stronger=True
    ),
    Recipe(
        "longer_stronger_gentler",
        f"{LONGER} times the epochs, stronger augmentation, a third of the learning rate",
        epochs=LONGER, stronger=True, rate=GENTLER,
    ),
)  # fmt: skip


def recipes_for(settings: FinetuneSettings, *, transformer: bool) -> dict[Recipe, FinetuneSettings]:
    """Return each recipe with the settings that it trains by, those left out that are no change to an earlier one.

    Pooling is a `transformer`'s alone.
    """
    found: dict[Recipe, FinetuneSettings] = {}
    for recipe in RECIPES:
        applied = recipe.applied(settings)
        if applied not in found.values() and (transformer or not recipe.pooling):
            found[recipe] = applied
    return found
