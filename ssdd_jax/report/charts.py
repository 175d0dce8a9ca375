"""The curves of the page: specifications of Vega-Lite, and the library that draws them in a browser."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from ssdd_jax.io.files import write_bytes
from ssdd_jax.paths import default_cache

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

        content = vl_convert.javascript_bundle()
        try:
            write_bytes(file, content.encode())
        except OSError:  # the next one makes it again
            return content
    return file.read_text(encoding="utf-8")


def style(place: int) -> dict[str, Any]:
    """Return the colour and the dashes of the series at some place: two series differ in one of the two."""
    return {"colour": f"var(--series-{place % NUM_COLOURS})", "dashes": list(DASHES[place // NUM_COLOURS % len(DASHES)])}


def loss_chart(curves: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], styles: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the chart of outer losses: means over seeds, and a band from the smallest to the largest.

    Args:
        curves: by run and method the steps "t" and the losses "t S" of S seeds, positive.
        styles: by method, of `style`.
    """
    values = []
    for run, by_method in curves.items():
        for method, (steps, losses) in by_method.items():
            shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MAX_POINTS)).astype(int))
            for step, loss in zip(steps[shown].tolist(), losses[shown], strict=True):
                point = {"run": run, "method": method, "x": step, "mean": _round(loss.mean())}
                values.append(point | {"low": _round(loss.min()), "high": _round(loss.max())})
    x = {"field": "x", "type": "quantitative", "title": "outer step", "scale": {"nice": False}}
    y = {"field": "mean", "type": "quantitative", "title": "outer loss", "scale": {"type": "log"}}
    return _chart(values, x, y, styles, several_runs=len(curves) > 1)


def budget_chart(points: Sequence[Mapping[str, Any]], title: str, styles: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the chart of a score over the budget: means over seeds, and a band of one sample standard deviation to each side.

    Args:
        points: each with `run`, `method`, the budget `x` in pairs, and `mean`, `low` and `high` of the score.
        title: of the score.
        styles: by method, of `style`.
    """
    ticks = sorted({point["x"] for point in points})
    x = {"field": "x", "type": "quantitative", "title": "budget N (pairs)", "scale": {"type": "log"}, "axis": {"values": ticks, "grid": False}}
    y = {"field": "mean", "type": "quantitative", "title": title, "scale": {"zero": False}}
    # A method has one line over all runs: each run has one budget.
    return _chart(points, x, y, styles, several_runs=False, marks=True)


def _chart(
    values: Sequence[Mapping[str, Any]],
    x: Mapping[str, Any],
    y: Mapping[str, Any],
    styles: Mapping[str, Mapping[str, Any]],
    *,
    several_runs: bool,
    marks: bool = False,
) -> dict[str, Any]:
    """Return lines by method with bands. The page sets `hiddenMethods` and `hiddenRuns` when something is switched off."""
    methods = list(dict.fromkeys(point["method"] for point in values))
    scale = lambda key: {"domain": methods, "range": [styles[method][key] for method in methods]}
    series = {
        "color": {"field": "method", "type": "nominal", "scale": scale("colour"), "legend": None},
        "strokeDash": {"field": "method", "type": "nominal", "scale": scale("dashes"), "legend": None},
        "detail": {"field": "run", "type": "nominal"},
    }
    if several_runs:
        runs = list(dict.fromkeys(point["run"] for point in values))
        widths = {"domain": runs, "range": [round(2.6 - 1.8 * i / (len(runs) - 1), 2) for i in range(len(runs))]}
        series["strokeWidth"] = {"field": "run", "type": "nominal", "scale": widths, "legend": None}
    if marks:
        del series["detail"]
    names = {"run": "run", "method": "method", "x": x["title"], "mean": y["title"], "low": "from", "high": "to"}
    tooltip = [{"field": key, "title": name} for key, name in names.items() if key != "run" or several_runs or marks]
    hover = {"condition": {"param": "nearest", "empty": False, "value": 1}, "value": 0}
    single = len({point["x"] for point in values}) < 3
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": 320,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": list(values)},
        "params": [{"name": "hiddenMethods", "value": []}, {"name": "hiddenRuns", "value": []}],
        "transform": [{"filter": "indexof(hiddenMethods, datum.method) < 0 && indexof(hiddenRuns, datum.run) < 0"}],
        "encoding": {"x": x, "y": y},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.18},
                "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}, **{k: v for k, v in series.items() if "stroke" not in k}},
            },
            {"mark": {"type": "line", "strokeWidth": 2, "point": marks or single}, "encoding": series},
            {
                "params": [{"name": "nearest", "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}}],
                "mark": {"type": "circle", "size": 90},
                "encoding": {"color": series["color"], "opacity": hover, "tooltip": tooltip},
            },
        ],
        "config": _CONFIG,
    }


def _round(value: float) -> float:
    """Return a number with the digits that a tooltip shows."""
    return float(f"{value:.4g}")
