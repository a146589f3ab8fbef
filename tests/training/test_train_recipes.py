"""Recipes: what they say, how they are changed, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from thalweg.errors import InvalidInputError
from thalweg.gradients.steps import Checkpointing
from thalweg.training.recipes import RECIPES, Recipe, find_recipe, override


def test_the_recipe_of_the_paper() -> None:
    recipe = find_recipe("e5-mistral")
    assert (recipe.objective, 1 / recipe.temperature, recipe.negatives) == ("contrastive", 50, 1)
    assert (recipe.batch_size, recipe.gradient_cache, recipe.epochs, recipe.max_length) == (2048, True, 1, 512)
    assert (recipe.lora_rank, recipe.lora_alpha, recipe.instructions) == (16, 16, True)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.warmup_steps) == (4e-4, 0.1, 100)


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_shown_makes_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = replace(find_recipe(name), matryoshka=(64, 8), vertical_chunk_size=7)
    shown = recipe.describe()
    assert [field for field, _, _ in shown] == [field.name for field in fields(Recipe)]
    assert all(about for _, _, about in shown)
    assert override(Recipe(), [f"{field}={value}" for field, value, _ in shown]) == recipe
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"recipe": recipe.to_json(), "model": "x"}))
    assert find_recipe(str(path)) == recipe


def test_long_texts() -> None:
    recipe = override(Recipe(), ["vertical_chunk_size=64", "two_level=true", "detach_every=3", "state_passing=0.25"])
    assert recipe.checkpointing() == Checkpointing(64, None, False, True, 3)
    passing = recipe.passing()
    assert passing is not None
    assert (passing.probability, passing.size) == (0.25, 32)
    assert (Recipe().checkpointing(), Recipe().passing()) == (None, None)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learning_rate=fast", "learning_rate='fast': a number is wanted"),
        ("learning_rate=0", "learning_rate must be above 0, got 0.0"),
        ("learning_rate=nan", "a number is wanted"),
        ("epochs=1.5", "epochs='1.5': a whole number is wanted"),
        ("epochs=0", "epochs must be at least 1, got 0"),
        ("max_steps=-3", "max_steps must be at least 1, got -3"),
        ("two_level=perhaps", "two_level='perhaps': true or false is wanted"),
        ("two_level=true", "two_level=true needs vertical_chunk_size"),
        ("objective=guess", "objective='guess': contrastive or distill is wanted"),
        ("matryoshka=8,x", "matryoshka='8,x': whole numbers"),
        ("matryoshka=0", "matryoshka must be widths of at least 1"),
        ("lora_dropout=2", "lora_dropout must be in 0..1, got 2.0"),
        ("lora_rang=8", "no setting 'lora_rang'; known are name, objective"),
        ("lora_rank", "'lora_rank' sets nothing"),
    ],
)
def test_values_that_cannot_be(setting: str, message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        override(Recipe(), [setting])
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantize_4bit": True, "lora_rank": 0}, "quantize_4bit=true"),
        ({"objective": "distill", "vector_weight": 0.0, "similarity_weight": 0.0}, "nothing to learn"),
        ({"epochs": True}, "epochs=True: a whole number"),
        ({"vertical_chunk_size": 64, "max_tokens_per_step": 32}, "no room for a chunk"),
    ],
)
def test_combinations_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Recipe(**changes)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no recipe 'e5': e5-mistral, distill, tiny"):
        find_recipe("e5")
    path = tmp_path / "recipe.json"
    for content, message in (
        ("{", "is no recipe"),
        ("[" * 100_000, "is no recipe"),
        ("3", "an object of settings is wanted, not 3"),
        ('{"recipe": ["epochs"]}', r"an object of settings is wanted, not \['epochs'\]"),
        ('{"recipe": {"speed": 1}}', "no setting 'speed'"),
        ('{"recipe": {"learning_rate": 1e999}}', "learning_rate=inf: a number is wanted"),
    ):
        path.write_text(content)
        with pytest.raises(InvalidInputError, match=message):
            find_recipe(str(path))
