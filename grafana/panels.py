"""Shorthands for the kinds of panel that the dashboards use, on Grafana's own builders."""

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders import prometheus as prometheus_query
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, DynamicConfigValue, Threshold, ThresholdsMode

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24
"""Columns of Grafana's grid."""

Steps = Sequence[tuple[float | None, str]]
"""Threshold steps: (from this value on, colour); the first one has no value."""


@dataclass(frozen=True)
class Query:
    """PromQL with $run and $__rate_interval, and a legend in Grafana's {{label}} notation."""

    expr: str
    legend: str = ""
    dashed: bool = False
    """Drawn as a dashed grey line: something to compare with."""


def figure(
    title: str, expr: str, good: str, *, unit: str = "short", decimals: int | None = None, steps: Steps = ()
) -> stat.Panel:
    """One number with its recent course. `good` says what it means and what good looks like."""
    panel = (
        stat.Panel()
        .title(title)
        .description(good)
        .datasource(SOURCE)
        .unit(unit)
        .height(4)
        .span(3)
        .graph_mode(BigValueGraphMode.AREA)
        .no_value("no data")
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_target(Query(expr), 0))
    )
    if decimals is not None:
        panel.decimals(decimals)
    if steps:
        thresholds = [Threshold(value=value, color=colour) for value, colour in steps]
        panel.thresholds(dashboards.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(thresholds))
    return panel


def lines(
    title: str,
    queries: Sequence[Query],
    good: str,
    *,
    unit: str = "short",
    columns: int = WIDTH // 2,
    stacked: bool = False,
    logarithmic: bool = False,
    lowest: float | None = 0.0,
    highest: float | None = None,
) -> timeseries.Panel:
    """Curves over time. `lowest` and `highest` bound the axis; None lets it follow the data."""
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    panel = (
        timeseries.Panel()
        .title(title)
        .description(good)
        .datasource(SOURCE)
        .unit(unit)
        .height(8)
        .span(columns)
        .show_points(VisibilityMode.NEVER)
        .fill_opacity(70 if stacked else 5)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .legend(legend.show_legend(True))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if logarithmic:
        panel.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
    elif lowest is not None:
        panel.min(lowest)
    if highest is not None:
        panel.max(highest)
    for index, query in enumerate(queries):
        panel.with_target(_target(query, index))
        if query.dashed:
            panel.override_by_query(
                chr(ord("A") + index),
                [
                    DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
                    DynamicConfigValue("custom.fillOpacity", 0),
                    DynamicConfigValue("color", {"mode": "fixed", "fixedColor": "text"}),
                ],
            )
    return panel


def _target(query: Query, index: int) -> prometheus_query.Dataquery:
    return (
        prometheus_query.Dataquery()
        .expr(query.expr)
        .legend_format(query.legend)
        .ref_id(chr(ord("A") + index))
        .range()
        .datasource(SOURCE)
    )
