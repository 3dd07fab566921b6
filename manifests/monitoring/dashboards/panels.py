"""Panels of our dashboards in Grafana's own builders: one look, one datasource variable, one way to choose a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, text, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    TableCellHeight,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DashboardLinkType, DataSourceRef, VariableRefresh, VariableSort
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

__all__ = ["CHOSEN", "Lines", "Number", "Rows", "Words", "build"]

CHOSEN = 'namespace=~"$namespace", inferenceservice=~"$service"'
"""Label matchers of the services that the dashboard's variables choose."""
DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


@dataclass(frozen=True)
class Lines:
    """A time series panel; `queries` are PromQL and legend."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    help: str = ""
    span: int = 8


@dataclass(frozen=True)
class Number:
    """The latest value, large."""

    title: str
    query: str
    unit: str = "short"
    help: str = ""
    span: int = 4


@dataclass(frozen=True)
class Rows:
    """An instant query as a table."""

    title: str
    query: str
    help: str = ""
    span: int = 24


@dataclass(frozen=True)
class Words:
    """Markdown, under a panel id that links name."""

    title: str
    content: str
    id: int
    span: int = 12


Panel = Lines | Number | Rows | Words


def build(
    uid: str, title: str, text_: str, rows: Sequence[tuple[str, Sequence[Panel]]], *, links: bool = True
) -> dashboard.Dashboard:
    """Lay out a dashboard.

    Args:
        uid: stable, since links name it.
        title: without the common prefix.
        text_: what it is for.
        rows: their titles and panels, from left to right.
        links: whether it names the other dashboards of ours.
    """
    board = (
        dashboard.Dashboard(f"Serinus / {title}")
        .uid(uid)
        .description(text_)
        .tags(["serinus"])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_choice("namespace", "Namespace", "label_values(serinus_model_ready, namespace)"))
        .with_variable(
            _choice(
                "service", "Service", 'label_values(serinus_model_ready{namespace=~"$namespace"}, inferenceservice)'
            )
        )
    )
    if links:
        board.link(
            dashboard.DashboardLink("Serinus")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["serinus"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
    next_id = 1
    for name, panels in rows:
        board.with_row(dashboard.Row(name).id(next_id))
        next_id += 1
        for panel in panels:
            board.with_panel(_panel(panel, panel.id if isinstance(panel, Words) else next_id))
            next_id += 1
    return board


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _target(expression: str, legend: str, letter: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(letter).range()


def _panel(panel: Panel, number: int) -> timeseries.Panel | stat.Panel | table.Panel | text.Panel:
    if isinstance(panel, Lines):
        built = (
            timeseries.Panel()
            .unit(panel.unit)
            .min(0)
            .fill_opacity(8)
            .legend(
                common.VizLegendOptions()
                .display_mode(LegendDisplayMode.TABLE)
                .placement(LegendPlacement.BOTTOM)
                .show_legend(True)
                .calcs(["lastNotNull", "max"])
            )
            .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
            .height(8)
        )
        for (expression, legend), letter in zip(panel.queries, "ABCDEFGH", strict=False):
            built.with_target(_target(expression, legend, letter))
        words = panel.help
    elif isinstance(panel, Number):
        built = (
            stat.Panel()
            .unit(panel.unit)
            .graph_mode(BigValueGraphMode.AREA)
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
            .height(4)
            .with_target(_target(panel.query, "__auto", "A"))
        )
        words = panel.help
    elif isinstance(panel, Rows):
        query = prometheus.Dataquery().expr(panel.query).instant().format(PromQueryFormat.TABLE).ref_id("A")
        built = table.Panel().cell_height(TableCellHeight.SM).height(8).with_target(query)
        words = panel.help
    else:
        return (
            text.Panel()
            .title(panel.title)
            .id(number)
            .mode(TextMode.MARKDOWN)
            .content(panel.content)
            .span(panel.span)
            .height(14)
        )
    return built.title(panel.title).description(words).id(number).span(panel.span).datasource(DATASOURCE)
