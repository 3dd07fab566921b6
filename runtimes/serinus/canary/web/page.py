"""A run as one HTML document: words first, then counts, evidence and lines over time; light and dark, narrow and wide.

All that comes from outside (names, words, numbers of a file) goes through `escape`. The document needs nothing beside itself, and its content
security policy lets nothing but its own style and, where it is live, its own script in.
"""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib import resources

from ..watch import evidence_text
from .charts import Line, duration, line_chart, pair_chart
from .history import RunHistory
from .page_words import headline
from .windows import Window, bucket_quantile, windows_of

__all__ = ["content_security_policy", "render_document", "render_run", "title_of"]


def render_document(histories: Sequence[RunHistory], *, version: int | None = None) -> str:
    """Render a whole document.

    Args:
        histories: the runs, one a section.
        version: of a live page, which asks for news; None: a file that stays as it is.
    """
    title = title_of(histories[0]) if len(histories) == 1 else f"{len(histories)} canary runs"
    body = "".join(f"<section>{render_run(history)}</section>" for history in histories)
    live = version is not None
    lost = (
        '<p class="connection" id="lost" role="alert" hidden>The run does not answer any more; below is how it stood last.</p>'
        if live
        else ""
    )
    reload = '<noscript><meta http-equiv="refresh" content="10"></noscript>' if live else ""
    script = f"<script>{_asset('page.js')}</script>" if live else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{content_security_policy()}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"{reload}<title>{escape(title)}</title><style>{_asset('page.css')}</style></head>"
        f'<body>{lost}<main data-version="{version or 0}">{body}</main>{script}</body></html>\n'
    )


def title_of(history: RunHistory) -> str:
    """The document's title: how it stands, then whose."""
    return f"{headline(history).short}: {history.service or history.run or 'canary'}"


@cache
def _asset(name: str) -> str:
    return (resources.files("serinus.canary.web") / name).read_text(encoding="utf-8")


@cache
def content_security_policy() -> str:
    """The policy that the document has, for the header of a server too."""
    style, script = (
        base64.b64encode(hashlib.sha256(_asset(name).encode()).digest()).decode() for name in ("page.css", "page.js")
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'"
    )


def render_run(history: RunHistory) -> str:
    """Render what a live page replaces."""
    windows = windows_of(history.points, history.quantile)
    return "".join(
        (
            _state(history),
            _arms(history),
            _guardrails(history),
            _charts(history, windows),
            _told(history),
            _values(history, windows),
        )
    )


def _state(history: RunHistory) -> str:
    head = headline(history)
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in history.reasons)
    why = f"<h2>Why</h2><ul>{reasons}</ul>" if reasons else ""
    name = history.service or history.run or "canary"
    mode = f" ({history.mode})" if history.mode else ""
    when = []
    if history.began is not None:
        when.append(f"began {_moment(history.began)}")
    if history.looks:
        when.append(f"{history.looks:,} look{'' if history.looks == 1 else 's'}")
    if history.last is not None:
        when.append(f"last heard {_moment(history.last)}")
    if history.unread:
        when.append(f"{history.unread} recorded events made no sense and are left out")
    return (
        f"<h1>Canary of {escape(name)}{escape(mode)}</h1>"
        f'<div class="state {head.style}" role="status"><strong>{escape(head.title)}</strong>'
        f"<p>{escape(head.sentence)}</p></div>"
        f'<p class="soft">{escape("; ".join(when))}</p>{why}'
    )


def _moment(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (OverflowError, OSError, ValueError):
        return f"{seconds:g} s after 1970"


# Counts --------------------------------------------------------------------------------------------------------------


def _arms(history: RunHistory) -> str:
    look = history.points[-1].look if history.points else None
    percent = history.percent
    names = ("Version", "Revision", "Traffic", "Requests", "Errors", "Median", _quantile_name(history))
    rows = []
    for style, revision in (("stable", history.stable), ("canary", history.canary)):
        cells = [_share(history, style), "0", "-", "-", "-"] if percent is not None else ["-", "0", "-", "-", "-"]
        if look is not None:
            arm = look.stable if style == "stable" else look.canary
            cells[1] = f"{arm.requests:,}"
            if arm.errors is not None and arm.requests:
                cells[2] = f"{arm.errors:,} ({100 * arm.errors / arm.requests:.3g} %)"
            if arm.latency is not None:
                edges = [0.0, *arm.latency.le_s, arm.latency.le_s[-1]]
                for place, p in ((3, 0.5), (4, history.quantile)):
                    found = bucket_quantile(edges, arm.latency.counts, p)
                    cells[place] = "-" if found is None else _seconds(found)
        numbers = "".join(
            f'<td class="number" data-name="{name}">{escape(cell)}</td>'
            for name, cell in zip(names[2:], cells, strict=True)
        )
        rows.append(
            f'<tr><th scope="row"><span class="key {style}"></span>{style}</th>'
            f'<td class="break" data-name="Revision">{escape(revision)}</td>{numbers}</tr>'
        )
    return f"<h2>Both versions, since the run began</h2>{_table(names, rows, numbers_from=2)}"


def _share(history: RunHistory, style: str) -> str:
    percent = history.percent or 0.0
    if history.ending == "promoted":
        percent = 100.0
    elif history.ending == "rolled back":
        percent = 0.0
    return f"{percent if style == 'canary' else 100 - percent:g} %"


def _quantile_name(history: RunHistory) -> str:
    return f"p{100 * history.quantile:g}"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms" if value >= 0.001 else f"{value * 1e6:.3g} µs"


def _table(names: Sequence[str], rows: Iterable[str], *, numbers_from: int = 99) -> str:
    head = "".join(
        f'<th scope="col"{" class=number" if index >= numbers_from else ""}>{escape(name)}</th>'
        for index, name in enumerate(names)
    )
    return f'<div class="wide"><table class="cards"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


# Evidence ------------------------------------------------------------------------------------------------------------


def _guardrails(history: RunHistory) -> str:
    standing = history.standing
    if standing is None:
        return ""
    rows = []
    for each in standing.guardrails:
        through = (
            '<span class="good-text">yes</span>'
            if each.passed and each.words
            else f"not yet: {escape(each.missing)}{_needed(each.requests_needed)}"
            if not each.passed
            else escape(each.missing)
        )
        # A guardrail that is not told has no evidence, which is something else than evidence of 1.
        against = escape(evidence_text(each.against)) if each.words else "-"
        meter = _meter(each.against, standing.rolls_back_at) if each.words else ""
        rows.append(
            f'<tr><th scope="row">{escape(each.metric)}</th><td class="break" data-name="Measured">{escape(each.words) or "-"}</td>'
            f'<td data-name="Against the canary">{against} {meter}</td><td class="break" data-name="Lets it through">{through}</td></tr>'
        )
    style = "bad-text" if standing.against >= standing.rolls_back_at else ""
    sentence = (
        f"Evidence against the canary, over all guardrails: <span class='{style}'>{escape(evidence_text(standing.against))}</span>; "
        f"it is rolled back at {escape(evidence_text(standing.rolls_back_at))}. It is promoted when every guardrail has evidence of "
        f"{escape(evidence_text(standing.promotes_at))} that it is not worse by its margin. Evidence of 1 says nothing either way."
    )
    names = ("Guardrail", "Measured", "Against the canary", "Lets it through")
    return f"<h2>Evidence</h2><p>{sentence}</p>{_table(names, rows)}"


def _needed(requests: float | None) -> str:
    return f"; about {requests:,} requests more" if requests else ""


def _meter(against: float, threshold: float) -> str:
    part = min(1.0, max(0.0, against / threshold)) if threshold > 0 else 0.0
    style = "over" if part >= 1 else "full"
    return (
        f'<svg class="meter" viewBox="0 0 120 10" role="img" aria-label="{100 * part:.0f} % of the way to a rollback">'
        f'<rect class="rest" width="120" height="10" rx="2"/><rect class="{style}" width="{120 * part:.0f}" height="10" rx="2"/></svg>'
    )


# Lines ---------------------------------------------------------------------------------------------------------------


def _charts(history: RunHistory, windows: Sequence[Window]) -> str:
    if not windows:
        return ""
    tail = _quantile_name(history)
    last = windows[-1]
    figures = [
        _figure(
            "Traffic of the canary",
            "as asked (plain), and as it came (dashed)",
            line_chart(
                f"Share of the traffic that the canary was given over time; last {_percent_words(last.percent)}",
                [
                    Line("ink thin", [(0.0, windows[0].percent), *((w.seconds, w.percent) for w in windows)], True),
                    Line("canary", [(w.seconds, w.share) for w in windows]),
                ],
                value=lambda y: f"{y:.3g} %",
                least=0.0,
            ),
        ),
        _figure(
            "Errors",
            "of at least the last 200 requests",
            line_chart(
                f"Share of failed requests over time; last: stable {_part_words(last.stable.error_share)}, canary {_part_words(last.canary.error_share)}",
                [
                    Line("stable", [(w.seconds, w.stable.error_share) for w in windows]),
                    Line("canary", [(w.seconds, w.canary.error_share) for w in windows]),
                ],
                value=lambda y: f"{100 * y:.3g} %",
                least=0.0,
            ),
        ),
        _figure(
            "Latency",
            f"{tail} (thick) and median (thin), estimated within buckets, of at least the last {math.ceil(3 / (1 - history.quantile)):,} requests",
            line_chart(
                f"{tail} and median over time; last {tail}: stable {_seconds_words(last.stable.tail_s)}, canary {_seconds_words(last.canary.tail_s)}",
                [
                    Line("stable thin", [(w.seconds, w.stable.median_s) for w in windows]),
                    Line("canary thin", [(w.seconds, w.canary.median_s) for w in windows]),
                    Line("stable", [(w.seconds, w.stable.tail_s) for w in windows]),
                    Line("canary", [(w.seconds, w.canary.tail_s) for w in windows]),
                ],
                value=_seconds,
                is_log=True,
            ),
        ),
        _evidence_chart(history, windows),
        *_score_charts(history, windows),
    ]
    keys = '<span class="key stable"></span> stable &nbsp; <span class="key canary"></span> canary'
    return f'<h2>Over time</h2><p class="soft">{keys}</p><div class="charts">{"".join(figures)}</div>'


def _evidence_chart(history: RunHistory, windows: Sequence[Window]) -> str:
    standing = history.standing
    limit = None
    if standing is not None:
        limit = (math.exp(standing.rolls_back_at), f"{evidence_text(standing.rolls_back_at)} rolls back")
    points = [
        # Beyond a million nobody counts, and below a hundredth nothing is said any more.
        (w.seconds, None if w.against is None else math.exp(min(13.9, max(-4.7, w.against))))
        for w in windows
    ]
    return _figure(
        "Evidence against the canary",
        "1 says nothing; it goes up while the canary does worse",
        line_chart(
            f"Evidence against the canary over time; last {evidence_text(standing.against) if standing else 'not recorded'}",
            [Line("ink", points)],
            value=lambda y: f"{y:,.3g}",
            is_log=True,
            least=0.5,
            most=30.0,
            limit=limit,
        ),
    )


def _score_charts(history: RunHistory, windows: Sequence[Window]) -> list[str]:
    look = history.points[-1].look
    if look.stable.score is None or look.canary.score is None:
        return []
    shares = [[count / max(1, sum(counts)) for count in counts] for counts in (look.stable.score, look.canary.score)]
    lines = [
        Line(
            f"{style}{' thin' if index != 1 else ''}",
            [
                (w.seconds, None if arm.score is None else arm.score[index] + 1)
                for w, arm in ((w, w.stable if style == "stable" else w.canary) for w in windows)
            ],
        )
        for style in ("stable", "canary")
        for index in range(3)
    ]
    return [
        _figure(
            "Score distribution",
            "share of the scores in each bucket, since the run began",
            pair_chart("Shares of the scores by bucket, of both versions, since the run began", *shares),
        ),
        _figure(
            "Score over time",
            "bucket of the median (thick), of the 10th and 90th percentile (thin)",
            line_chart(
                "Buckets that the 10th, 50th and 90th percentile of the scores lie in, of both versions, over time",
                lines,
                value=lambda y: f"{y:.3g}",
                least=1.0,
                most=float(len(shares[0])),
            ),
        ),
    ]


def _figure(title: str, note: str, drawing: str) -> str:
    return (
        f'<figure><figcaption>{escape(title)} <span class="soft">{escape(note)}</span></figcaption>{drawing}</figure>'
    )


def _percent_words(value: float | None) -> str:
    return "not told" if value is None else f"{value:.3g} %"


def _part_words(value: float | None) -> str:
    return "not known" if value is None else f"{100 * value:.3g} %"


def _seconds_words(value: float | None) -> str:
    return "not known" if value is None else _seconds(value)


# What was told, and the numbers of the lines -------------------------------------------------------------------------


def _told(history: RunHistory) -> str:
    if not history.told:
        return ""
    rows = []
    for each in reversed(history.told):
        at = "-" if each.time is None else _moment(each.time)
        style = ' class="bad-text"' if each.kind == "problem" else ""
        times = f" ({each.times} times)" if each.times > 1 else ""
        rows.append(
            f'<tr><td class="when" data-name="At">{escape(at)}</td><td data-name="Kind"><span{style}>{escape(each.kind)}</span></td>'
            f'<td class="break" data-name="What">{escape(each.words)}{times}</td></tr>'
        )
    return f"<h2>What was done and told, the latest first</h2>{_table(('At', 'Kind', 'What'), rows)}"


def _values(history: RunHistory, windows: Sequence[Window]) -> str:
    if not windows:
        return ""
    tail = _quantile_name(history)
    names = ["After", "Asked", "Came", "Evidence"]
    for style in ("stable", "canary"):
        names += [f"{style}: {what}" for what in ("requests", "errors", "error share", "median", tail)]
    rows = []
    for window in windows:
        evidence = "-" if window.against is None else evidence_text(window.against)
        cells = [duration(window.seconds), _percent_words(window.percent), _percent_words(window.share), evidence]
        for arm in (window.stable, window.canary):
            errors = "-" if arm.errors is None else f"{arm.errors:,}"
            cells += [f"{arm.requests:,}", errors, _part_words(arm.error_share)]
            cells += [_seconds_words(arm.median_s), _seconds_words(arm.tail_s)]
        rows.append("<tr>" + "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells) + "</tr>")
    head = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in names)
    return (
        f'<details><summary>The numbers behind the lines</summary><div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )
