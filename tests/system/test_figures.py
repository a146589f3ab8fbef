"""What the pictures share."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import pytest
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure

from thalweg.system.figures import label, look, save, token_axis, tokens

from .test_terminal import ATTACKS, obeyed


@pytest.mark.parametrize("name", ["a$b$", "$", "$$", "\\$x$", "_private", "_$a$_", "x" * 500, "two\nlines", "東京"])
def test_any_name_is_drawn_as_it_is(name: str, tmp_path: Path) -> None:
    shown = label(name)
    assert not is_math_text(shown)
    assert not shown.startswith("_")
    assert len(shown) <= 60
    assert "\n" not in shown
    figure = Figure()
    axis = figure.subplots()
    axis.plot([1, 2], label=shown)
    assert len(axis.legend().get_texts()) == 1
    save(figure, tmp_path / "x.svg")


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_no_control_character_gets_into_a_picture(attack: str) -> None:
    """An SVG is text, and some are no XML."""
    assert not obeyed(label(attack))


@pytest.mark.parametrize("of", [2, 5, 8, 17])
def test_lines_that_lie_on_each_other_are_told_apart(of: int) -> None:
    looks = [look(rank, of) for rank in range(of)]
    for a, b in combinations(looks, 2):
        assert (a["color"], str(a["linestyle"])) != (b["color"], str(b["linestyle"]))
    for below, above in pairwise(looks[:4]):
        assert below["linewidth"] > above["linewidth"]
        assert below["markersize"] > above["markersize"]
        assert below["marker"] != above["marker"]
    assert all(each["markerfacecolor"] == "none" for each in looks)


def test_lengths_on_an_axis() -> None:
    assert [tokens(n) for n in (48, 1000, 1024, 1536, 65536, 2**20, 3 * 2**20)] == [
        *("48", "1,000", "1k", "1,536", "64k", "1M", "3M")
    ]
    axis = Figure().subplots()
    token_axis(axis, [2**power for power in range(8, 21)])
    assert axis.get_xscale() == "log"
    names = [tick.get_text() for tick in axis.get_xticklabels()]
    assert 4 <= len(names) <= 8
    assert names[0] == "256"
