"""The recipes of the search: what they change, what they leave, and in which order they stand."""

from __future__ import annotations

import pytest

from pipeline.models.recipes import RECIPES, recipes_for
from pipeline.settings.training import FinetuneSettings

SETTINGS = FinetuneSettings(epochs=20, warmup_epochs=2.0, learning_rate=3e-3, search={"budget_minutes": 5})


def names(settings: FinetuneSettings, transformer: bool = True) -> list[str]:
    return [recipe.name for recipe in recipes_for(settings, transformer=transformer)]


def test_the_first_is_the_settings_as_they_are_and_none_searches_again():
    first, *others = RECIPES
    assert first.applied(SETTINGS) == SETTINGS.model_copy(update={"search": None})
    assert all(recipe.applied(SETTINGS).search is None for recipe in others)
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)


def test_each_changes_what_its_words_say_and_nothing_else():
    found = {recipe.name: own for recipe, own in recipes_for(SETTINGS, transformer=True).items()}
    first = found["as_configured"].model_dump()

    def changed(name: str) -> dict:
        return {key: value for key, value in found[name].model_dump().items() if first.get(key) != value}

    assert changed("gentler") == {"learning_rate": pytest.approx(1e-3)}
    assert changed("attention") == {"pooling": "attention"}
    assert changed("longer") == {"epochs": 60, "warmup_epochs": 6.0}
    assert changed("stronger").keys() == {"augmentation"}
    assert changed("longer_stronger_gentler").keys() == {"epochs", "warmup_epochs", "learning_rate", "augmentation"}
    assert found["stronger"].augmentation.rotate_degrees == 15


def test_stronger_is_never_weaker_than_the_settings():
    wild = SETTINGS.model_copy(
        update={"augmentation": SETTINGS.augmentation.model_copy(update={"rotate_degrees": 40.0, "contrast": 0.4})}
    )
    stronger = next(recipe for recipe in RECIPES if recipe.name == "stronger").applied(wild).augmentation
    assert (stronger.rotate_degrees, stronger.contrast, stronger.scale) == (40.0, 0.4, 0.1)


def test_what_the_settings_have_already_is_not_tried_twice():
    assert "attention" not in names(SETTINGS.model_copy(update={"pooling": "attention"}))
    assert "attention" not in names(SETTINGS, transformer=False)
    assert len(names(SETTINGS)) == len(RECIPES)


def test_a_budget_of_steps_grows_with_the_epochs():
    longer = next(recipe for recipe in RECIPES if recipe.name == "longer")
    assert longer.applied(SETTINGS.model_copy(update={"max_steps": 100})).max_steps == 300
    assert longer.applied(SETTINGS).max_steps is None
