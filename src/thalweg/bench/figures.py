"""The pictures of a study, in the manner of the paper's: logarithmic axes, a line for every model and setting.

A point that failed ends its line with a cross.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from thalweg.bench.plot_series import Line, Over, Row, disturbed, memory, pictures, seconds, single
from thalweg.bench.point import OK, THALWEG, TRANSFORMER, Point
from thalweg.bench.shapes import LOOKS, SHAPES
from thalweg.errors import MissingExtraError
from thalweg.system.figures import label, save, tidy, tokens
from thalweg.system.words import counted

OTHERS = (("#e69f00", "p"), ("#7a5195", "h"), ("#8c564b", "*"), ("#17becf", "<"))
"""Colours and markers of real checkpoints, and of further sizes of one family."""

CLOSE = 8
"""Values within this factor are drawn on a linear scale."""

AXES = {
    "length": "length of the text (tokens)",
    "vertical_chunk_size": "vertical chunk V (tokens)",
    "inner_chunk": "inner chunk Q (tokens)",
    "batch": "batch size (texts)",
}


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """All pictures that the rows hold, as PNG and SVG; the PNGs.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = _pyplot()
    return [_pair(plt, drawn, over, folder / f"{name}.png") for name, over, drawn in pictures(rows)]


def _pair(plt: Any, drawn: list[Line], over: Over, path: Path) -> Path:
    """Time on the left, memory on the right."""
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained")
    colours, markers = _looks(drawn, over)
    for axis, value, title in (
        (axes[0], seconds, "time per text (s)"),
        (axes[1], memory, f"peak memory of the {_place(drawn)} (GiB)"),
    ):
        for line in drawn:
            colour, marker = (_of(looks, line.point, over) for looks in (colours, markers))
            _line(axis, line, over, value, colour, marker)
        axis.set(xscale="log", yscale="log", xlabel=AXES[over], ylabel=title)
        _ticks(axis, sorted({x for line in drawn for x, row in line.rows if not _apart(row, over)}))
    _legend(figure, drawn, over, colours, markers)
    figure.suptitle(_headline(drawn, over).replace("$", r"\$"), fontsize=10, color="#444444")
    save(figure, path)
    save(figure, path.with_suffix(".svg"))
    plt.close(figure)
    return path


def _line(axis: Any, line: Line, over: Over, value: Callable[[Row], float], colour: str, marker: str) -> None:
    style = _style(line.point, over)
    shown = [(x, row) for x, row in line.done if not _apart(row, over)]
    xs, ys = [x for x, _ in shown], [value(row) for _, row in shown]
    # Each line is thinner than those below it, so that of lines which lie on each other all are seen.
    width = max(2.8 - 0.4 * sum(below.get_linestyle() == style for below in axis.get_lines()), 1.2)
    axis.plot(xs, ys, style, marker=marker, color=colour, markersize=2.5 + 1.5 * width, linewidth=width)
    alone = [(x, value(row)) for x, row in shown if value is seconds and single(row)]
    if alone:
        axis.plot(*zip(*alone, strict=True), "o", color="white", markersize=2 + width / 2, zorder=5)
    if value is seconds and shown:
        low = [row["seconds_per_text"]["min"] for _, row in shown]
        high = [row["seconds_per_text"]["max"] for _, row in shown]
        axis.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
    whole = line.whole if over == "vertical_chunk_size" else None
    if whole is not None and whole["status"] == OK:
        axis.axhline(value(whole), color=colour, linestyle="--", linewidth=1.2)
    if line.failed is not None and ys:
        axis.plot([xs[-1], line.failed[0]], [ys[-1], ys[-1]], ":", color=colour, linewidth=1)
        axis.plot(line.failed[0], ys[-1], "x", color=colour, markersize=8, markeredgewidth=2)


def _ticks(axis: Any, xs: list[int]) -> None:
    """Numbers that can be read off: on a logarithmic scale at 1, 2 and 5, on a linear one where values are close.

    A linear scale begins at 0, so that noise does not fill the picture.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis.set_xticks(xs[:: max(1, -(-len(xs) // 8))])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tokens(round(x))))
    low, high = axis.get_ylim()
    if high / low < CLOSE:
        axis.set(yscale="linear", ylim=(0, 1.05 * high))
        axis.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    else:
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,), numticks=20))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    tidy(axis)


def _legend(figure: Any, drawn: list[Line], over: Over, colours: dict[str, str], markers: dict[str, str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    styles = {}
    for line in drawn:
        name = _setting(line.point, over)
        look: Any = {"linestyle": _style(line.point, over), "marker": markers.get(name), "markersize": 4}
        styles[name] = Line2D([], [], color=colours.get(name, "#444444"), label=label(name), **look)
    entries = [
        Line2D([], [], color=each, linewidth=2.5, marker=markers.get(name), markersize=5, label=label(name))
        for name, each in colours.items()
    ]
    named = {label(name) for name in styles}
    handles: list[Any] = [entry for entry in entries if entry.get_label() not in named]
    handles += styles.values()
    if over == "vertical_chunk_size" and any(line.whole for line in drawn):
        handles.append(Line2D([], [], color="#444444", linestyle="--", label="horizontal"))
    rows = [row for line in drawn for _, row in line.done]
    if any(map(single, rows)):
        spot: Any = {"linestyle": "", "marker": "o", "markerfacecolor": "white", "markersize": 5}
        handles.append(Line2D([], [], color="#444444", label="one timed run", **spot))
    if not all(map(single, rows)):
        handles.append(Patch(color="#444444", alpha=0.15, linewidth=0, label="shortest to longest run"))
    if any(line.failed for line in drawn):
        cross: Any = {"linestyle": "", "marker": "x", "markeredgewidth": 2}
        handles.append(Line2D([], [], color="#444444", label="memory or time limit", **cross))
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8, handlelength=3)


def _style(point: Point, over: Over) -> str:
    if point.runner == TRANSFORMER:
        return "-" if point.window is None else "-."
    if point.runner != THALWEG:
        return ":"
    if point.horizontal and over != "vertical_chunk_size":
        return "--"
    return "-" if point.tokens_per_step is None else "-."


def _of(looks: dict[str, str], point: Point, over: Over) -> str:
    """The colour or marker of a line: its model's, or its setting's."""
    return looks.get(point.name) or looks[_setting(point, over)]


def _setting(point: Point, over: Over) -> str:
    if over == "vertical_chunk_size":
        return "vertical"
    if over == "inner_chunk":
        return f"vertical, V = {point.vertical_chunk_size:,}" if point.vertical_chunk_size else "horizontal"
    if point.runner == THALWEG and not point.horizontal:
        if point.tokens_per_step is not None:
            return f"packed, {point.tokens_per_step:,} tokens a step"
        return f"vertical, V = {point.vertical_chunk_size:,}"
    return point.setting


def _looks(drawn: list[Line], over: Over) -> tuple[dict[str, str], dict[str, str]]:
    """A colour and a marker for every model: its family's, the next free ones where two are of one family.

    Where there is one model only, a colour for every setting; and a marker for every setting where the styles of lines
    do not tell a model's settings apart.
    """
    known = [(look.colour, look.marker) for look in LOOKS.values()]
    settings = list(dict.fromkeys(_setting(line.point, over) for line in drawn))
    of_settings = dict(zip(settings, [*known, *OTHERS] * 4, strict=False))
    free = iter([*OTHERS, *known] * 4)
    of_models: dict[str, tuple[str, str]] = {}
    for line in drawn:
        name, shape = line.point.name, line.point.shape
        if name not in of_models:
            look = LOOKS[SHAPES[shape].family] if shape else None
            own = (look.colour, look.marker) if look is not None else next(free)
            of_models[name] = own if own not in of_models.values() else next(free)
    order = {look.title: i for i, look in enumerate(LOOKS.values())}
    of_models = dict(sorted(of_models.items(), key=lambda item: order.get(item[0].split(",")[0], 99)))
    colours = of_settings if len(of_models) == 1 else of_models
    styles = {(line.point.name, _style(line.point, over)) for line in drawn}
    told_apart = len(styles) == len({(line.point.name, _setting(line.point, over)) for line in drawn})
    markers = of_models if told_apart and len(of_models) > 1 else of_settings
    return {name: look[0] for name, look in colours.items()}, {name: look[1] for name, look in markers.items()}


def _headline(drawn: list[Line], over: Over) -> str:
    point, row = drawn[0].point, drawn[0].done[0][1]
    machine = row.get("machine", {})
    names = {line.point.name for line in drawn}
    words = [
        *(names if len(names) == 1 else []),
        point.dtype,
        str(machine.get("gpu") or machine.get("cpu", point.device)),
    ]
    words += [] if machine.get("gpu") else [counted(machine.get("threads") or 0, "thread")]
    busy = [row for line in drawn for _, row in line.done if disturbed(row)]
    if busy:
        worst = max(busy, key=lambda row: float(row["other_cores"]))
        words.append(f"other programs used up to {worst['other_cores']:.1f} of {worst['machine']['cores']} cores")
    if over != "length":
        words.insert(0, f"texts of {point.length:,} tokens")
    if over != "batch" and point.batch > 1:
        words.insert(0, f"batch {point.batch}")
    return " · ".join(words)


def _place(drawn: list[Line]) -> str:
    return "device" if drawn[0].point.device.startswith("cuda") else "process"


def _apart(row: Row, over: Over) -> bool:
    """The horizontal run of a sweep of V is a line of its own across the picture."""
    return over == "vertical_chunk_size" and Point.from_json(row["point"]).horizontal


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("pictures need matplotlib: pip install 'thalweg[bench]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "thalweg"
    return plt
