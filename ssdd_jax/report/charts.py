"""The curves of the page: specifications of Vega-Lite, and the library that draws them in a browser."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from ssdd_jax.io.files import write_bytes
from ssdd_jax.paths import default_cache

# By method: the steps "t" and the losses "t S" of S seeds.
Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]
# By method, of `style`.
Styles = Mapping[str, Mapping[str, Any]]
MAX_POINTS = 300
"""Points of a curve; more are not seen, and make the page large."""

# Of page.css, which has one for light and one for dark.
NUM_COLOURS, DASHES = 8, ((), (6, 3), (2, 3))
_TEXT, _LINE = "var(--text)", "var(--line)"
_CONFIG = {
    "background": None,
    "font": "inherit",
    "view": {"stroke": None},
    "axis": {
        "labelColor": _TEXT,
        "titleColor": _TEXT,
        "tickColor": _LINE,
        "domainColor": _LINE,
        "gridColor": _LINE,
        "labelFontSize": 12,
        "titleFontSize": 13,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
}


def library() -> str:
    """Return the JavaScript that draws Vega-Lite's charts, in one piece; made once for all runs and kept in the cache.

    Raises:
        ImportError: vl-convert-python is not installed.
    """
    # Making it takes seconds.
    file = default_cache() / f"vega-{metadata.version('vl-convert-python')}.js"
    if not file.is_file():
        import vl_convert

        content = vl_convert.javascript_bundle(None)
        try:
            write_bytes(file, content.encode())
        except OSError:  # the next one makes it again
            return content
    return file.read_text(encoding="utf-8")


def style(place: int) -> dict[str, Any]:
    """Return the colour and the dashes of the series at some place: two series differ in one of the two."""
    return {"colour": f"var(--series-{place % NUM_COLOURS})", "dashes": list(DASHES[place // NUM_COLOURS % len(DASHES)])}


def loss_chart(curves: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], styles: Styles) -> dict[str, Any]:
    """Return the chart of outer losses: means over seeds, and a band from the smallest to the largest.

    Args:
        curves: by run; losses are positive.
        styles: by method, of `style`.
    """
    values = []
    for run, by_method in curves.items():
        for method, (steps, losses) in by_method.items():
            shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MAX_POINTS)).astype(int))
            for step, loss in zip(steps[shown].tolist(), losses[shown], strict=True):
                numbers = {"mean": _round(loss.mean()), "lowest": _round(loss.min()), "highest": _round(loss.max())}
                values.append({**({"run": run} if len(curves) > 1 else {}), "method": method, "step": step, **numbers})
    x = {"title": "outer step", "scale": {"nice": False}, "axis": {"grid": False, "tickMinStep": 1, "tickCount": 8, "format": ",d"}}
    y = {"title": "outer loss", "scale": {"type": "log", "nice": False, "padding": 12}, "axis": {"tickCount": 6}}
    return _chart(values, ("step", "mean", "lowest", "highest"), x, y, styles)


def budget_chart(points: Sequence[Mapping[str, Any]], title: str, styles: Styles) -> dict[str, Any]:
    """Return the chart of a score over the budget: means over seeds, and a band of one sample standard deviation to each side.

    Args:
        points: each with `run`, `method`, the budget in `pairs`, and `mean`, `low` and `high` of the score.
        title: of the score.
        styles: by method, of `style`.
    """
    ticks = {"values": sorted({point["pairs"] for point in points}), "grid": False, "format": ",d", "labelOverlap": True}
    x = {"title": "budget N (pairs)", "scale": {"type": "log", "nice": False, "padding": 16}, "axis": ticks}
    y = {"title": title, "scale": {"zero": False, "nice": False, "padding": 12}, "axis": {"tickCount": 6}}
    # A method has one line over all runs, unless two of them have the same budget: then there are points alone.
    places = [(point["method"], point["pairs"]) for point in points]
    return _chart(points, ("pairs", "mean", "low", "high"), x, y, styles, by_run=len(set(places)) < len(places), marks=True)


def _chart(
    values: Sequence[Mapping[str, Any]],
    names: tuple[str, str, str, str],
    x: Mapping[str, Any],
    y: Mapping[str, Any],
    styles: Styles,
    *,
    by_run: bool = True,
    marks: bool = False,
) -> dict[str, Any]:
    """Return lines by method with bands. The page sets `hiddenMethods` and `hiddenRuns` when something is switched off.

    Args:
        values: points; what they have is what one sees when pointing at them.
        names: of their place, of the line, and of the lower and the upper end of the band.
        x: title, scale and axis of the place.
        y: likewise, of the others.
        styles: by method.
        by_run: whether each run has its own line, of another width, or one goes through the points of all.
        marks: whether points are seen.
    """
    place, middle, low, high = names
    methods = list(dict.fromkeys(point["method"] for point in values))
    runs = list(dict.fromkeys(point["run"] for point in values if "run" in point))
    scale = lambda key: {"domain": methods, "range": [styles[method][key] for method in methods]}
    band = {"color": {"field": "method", "type": "nominal", "scale": scale("colour"), "legend": None}}
    band |= {"detail": {"field": "run", "type": "nominal"}} if by_run else {}
    line = {**band, "strokeDash": {"field": "method", "type": "nominal", "scale": scale("dashes"), "legend": None}}
    if len(runs) > 1 and by_run and not marks:
        widths = {"domain": runs, "range": [round(2.8 - 2 * i / (len(runs) - 1), 2) for i in range(len(runs))]}
        line["strokeWidth"] = {"field": "run", "type": "ordinal", "scale": widths, "legend": None}
    seen = {"condition": {"param": "nearest", "empty": False, "value": 1}, "value": 0}
    few = len({point[place] for point in values}) < 3
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": 320,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": list(values)},
        "params": [{"name": "hiddenMethods", "value": []}, {"name": "hiddenRuns", "value": []}],
        "transform": [{"filter": "indexof(hiddenMethods, datum.method) < 0 && indexof(hiddenRuns, datum.run) < 0"}],
        "encoding": {"x": {"field": place, "type": "quantitative", **x}, "y": {"field": middle, "type": "quantitative", **y}},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.18},
                "encoding": {**band, "y": {"field": low, "type": "quantitative", **y}, "y2": {"field": high}},
            },
            {"mark": {"type": "line", "strokeWidth": 2, "point": marks or few}, "encoding": line},
            {
                "params": [{"name": "nearest", "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}}],
                "mark": {"type": "circle", "size": 90, "tooltip": {"content": "data"}},
                "encoding": {"color": band["color"], "opacity": seen},
            },
        ],
        "config": _CONFIG,
    }


def _round(value: float) -> float:
    """Return a number with as many digits as one wants to read."""
    return float(f"{value:.4g}")
