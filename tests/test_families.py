"""The rows of `families.py` are complete, everything derives from them, and nothing else keeps a list of families."""

from __future__ import annotations

import ast
import pickle
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import transformers

import thalweg
from tests.checkpoints.registry import CHECKPOINTS
from tests.models import registry
from thalweg.bench import peers
from thalweg.bench.shapes import LOOKS, SHAPES
from thalweg.bench.studies import LARGE, SMALL
from thalweg.bench.weights import recurrent_model
from thalweg.checkpoints.auto_map import CLASSES
from thalweg.checkpoints.formats import FORMATS, find_format, format_to_write
from thalweg.families import FAMILIES, Family, family_of, find_family, named
from thalweg.integrations import transformers as integration
from thalweg.integrations.transformers.modeling import MODELS

SOURCE = Path(thalweg.__file__).parent

SHARED = {"checkpoints/mamba_ssm.py"}
"""What two families have in common by their formats."""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_row_is_complete(family: Family) -> None:
    assert re.fullmatch("[a-z][a-z0-9_]*", family.name)
    assert family.title
    assert re.fullmatch("#[0-9a-f]{6}", family.colour)
    assert {size.name for size in family.sizes} >= set(family.measured_on_gpu) > set()
    assert len(family.tiny) >= 1
    config_fields = {field.name for field in fields(named(family.config))}
    for config in (*(size.config for size in family.sizes), *family.tiny.values()):
        assert config.keys() <= config_fields
    widths = [size.config["d_model"] for size in family.sizes]
    assert widths == sorted(widths)
    assert set(family.peers) <= set(peers.MODULES)
    assert family.transformers, "a family without classes for transformers says so here"
    formats = named(family.formats)
    assert {format.family for format in formats} == {family.name}
    assert {format.model_class for format in formats} == {named(family.model)}
    assert len([format for format in formats if format.write_config]) == 1
    assert {row.format for row in family.transformers} <= {format.name for format in formats if format.write_config}
    assert {find_format(row.format).in_transformers for row in family.transformers} == {family.in_transformers}
    assert {format for format, _ in CHECKPOINTS.values()} >= {format.name for format in formats}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_formats_agree_on_what_stays_float32(family: Family) -> None:
    """A parameter has one dtype, whichever format it was read from."""
    kept: dict[str, set[bool]] = {}
    for format in named(family.formats):
        for tensor_map in format.tensor_maps:
            if tensor_map.name is not None:
                kept.setdefault(tensor_map.name, set()).add(tensor_map.keep_float32)
    assert {name: values for name, values in kept.items() if len(values) > 1} == {}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_everything_derives_from_the_rows(family: Family) -> None:
    assert [shape.config for shape in SHAPES.values() if shape.family == family.name] == [
        s.config for s in family.sizes
    ]
    assert LOOKS[family.name].title == family.title
    assert family.sizes[0].name in SMALL
    assert set(family.measured_on_gpu) <= set(LARGE)
    assert set(family.tiny) <= registry.FAMILIES.keys()
    assert all(format in FORMATS for format in named(family.formats))
    model = recurrent_model(SHAPES[family.sizes[0].name], torch.float32, layers=1, vocabulary=8)
    assert type(model) is named(family.model)
    assert family_of(model.config) is find_family(family.name) is family
    assert family.inner_chunk(model.config, torch.device("cpu"), torch.float32) >= 1
    assert format_to_write(model).family == family.name
    for row in family.transformers:
        assert (CLASSES.get(row.model_type) is None) == family.in_transformers


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_classes_of_transformers(family: Family) -> None:
    for row in family.transformers:
        model_class = MODELS[row.model_type]
        assert model_class is getattr(integration, row.model)
        assert model_class.__name__ == row.model
        assert model_class.__doc__ == row.summary
        assert pickle.loads(pickle.dumps(model_class)) is model_class
        own = transformers if family.in_transformers else integration
        assert model_class.config_class is getattr(own, row.config)
        assert model_class.config_class.model_type == row.model_type
        assert {row.model, *([] if family.in_transformers else [row.config])} <= set(integration.__all__)


def test_names_are_unique() -> None:
    def unique(values: list[str]) -> bool:
        return len(values) == len(set(values))

    assert unique([family.name for family in FAMILIES])
    assert unique([look.title for look in LOOKS.values()])
    assert unique([look.colour for look in LOOKS.values()])
    assert unique([look.marker for look in LOOKS.values()])
    assert unique([size.name for family in FAMILIES for size in family.sizes])
    assert unique([variant for family in FAMILIES for variant in family.tiny])
    assert unique([row.model_type for family in FAMILIES for row in family.transformers])


@pytest.mark.subprocess
def test_rows_and_shapes_need_no_torch() -> None:
    program = "import sys, thalweg.families, thalweg.bench.shapes; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "set()\n"


def _words(family: Family) -> set[str]:
    """What stands for a family in code."""
    classes = {family.model.partition(":")[2], family.config.partition(":")[2]}
    rows = {word for row in family.transformers for word in (row.model_type, row.model, row.config)}
    return {family.name, family.title, *classes, *rows, *family.tiny, *(size.name for size in family.sizes)}


def _mentioned(tree: ast.AST) -> set[str]:
    """Names, modules and whole strings of a file, prose apart."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found |= set(node.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            found |= set((node.module or "").split("."))
    return found


def test_no_other_file_lists_families() -> None:
    """One family may be named where its speciality is treated; whoever names two has a list that will be forgotten."""
    own = {f"{folder}/{family.name}.py" for folder in ("models", "checkpoints") for family in FAMILIES}
    lists: dict[str, list[str]] = {}
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        if name in {"families.py", *own, *SHARED}:
            continue
        mentioned = _mentioned(ast.parse(path.read_text(encoding="utf-8")))
        found = [family.name for family in FAMILIES if _words(family) & mentioned]
        if len(found) > 1:
            lists[name] = found
    assert lists == {}
