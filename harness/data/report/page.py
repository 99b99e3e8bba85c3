"""The page: one HTML file that needs nothing else. Plots are inline SVG."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from html import escape

from harness.data.report.measure import N_GRAM, SourceFacts

COLOURS = ("#2f6fde", "#e2733a", "#2c9c69", "#b04fc0", "#c9a227", "#3aa6b9", "#d1495b", "#7a8791")
"""In the order of what they stand for; the last is for all the rest."""
SHOWN_LANGUAGES = len(COLOURS) - 1

STYLE = """
:root { --ink:#1c2430; --soft:#5d6b7a; --line:#e3e8ee; --card:#ffffff; --page:#f5f7fa; --blue:#2f6fde; --orange:#e2733a; }
* { box-sizing:border-box }
body { margin:0; background:var(--page); color:var(--ink); font:15px/1.5 system-ui,"Segoe UI","DejaVu Sans",sans-serif; }
main { max-width:1180px; margin:0 auto; padding:36px 28px 60px }
h1 { font-size:28px; margin:0 } h2 { font-size:18px; margin:38px 0 4px } h3 { font-size:15px; margin:0 0 8px }
p.sub { color:var(--soft); margin:2px 0 14px } .small { color:var(--soft); font-size:12.5px; overflow-wrap:anywhere }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(160px,1fr)); gap:14px; margin-top:22px }
.card { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:16px 18px; min-width:0 }
.tile b { display:block; font-size:26px; line-height:1.2; font-variant-numeric:tabular-nums } .tile span { color:var(--soft) }
.grid { display:grid; grid-template-columns:repeat(auto-fill,minmax(340px,1fr)); gap:14px }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums }
th { color:var(--soft); font-weight:500; text-align:left; font-size:13px } th,td { padding:7px 10px 7px 0; border-bottom:1px solid var(--line) }
tr:last-child td { border-bottom:0 } td.n,th.n { text-align:right } td.bar { width:22% }
.path { display:block; color:var(--soft); font-size:12px; overflow:hidden; text-overflow:ellipsis; white-space:nowrap; max-width:300px }
.scroll { overflow-x:auto }
svg { display:block; width:100%; height:auto } svg text { fill:var(--soft); font-size:11px }
.legend { display:flex; flex-wrap:wrap; gap:4px 16px; margin:10px 0 0; color:var(--soft); font-size:13px }
.legend i { display:inline-block; width:11px; height:11px; border-radius:3px; margin-right:6px }
.row { display:grid; grid-template-columns:150px 1fr; gap:12px; align-items:start; padding:6px 0 }
.row > span { overflow:hidden; text-overflow:ellipsis; white-space:nowrap }
.stack { display:flex; height:22px; border-radius:5px; overflow:hidden; background:var(--line) }
.stack i { display:block; height:100%; font:600 11px/22px system-ui,"DejaVu Sans",sans-serif; color:#fff; text-align:center; overflow:hidden }
.track { height:9px; border-radius:5px; background:var(--line); overflow:hidden } .track i { display:block; height:100%; border-radius:5px; background:var(--blue) }
ol.phrases { list-style:none; margin:0; padding:0 } ol.phrases li { padding:5px 0 }
ol.phrases q { display:block; quotes:none; font-size:13px; overflow-wrap:anywhere } .share { display:grid; grid-template-columns:1fr 52px; gap:8px; align-items:center; font-size:12.5px; color:var(--soft) }
.share > :last-child { text-align:right; font-variant-numeric:tabular-nums }
.note { background:#fff6e5; border:1px solid #f0d9a8; border-radius:8px; padding:8px 12px; margin-top:10px; font-size:13px }
footer { color:var(--soft); font-size:13px; margin-top:40px; border-top:1px solid var(--line); padding-top:14px }
"""


def render(sources: list[SourceFacts]) -> str:
    """The whole page."""
    sections = [
        _section("Sources", "", _overview(sources)),
        _section(
            "Length of documents",
            "Share of the documents by tokens, on a scale of powers of two. The line marks the median.",
            _lengths(sources),
        ),
        _section("Languages", "Share of the characters, guessed for each sampled document.", _languages(sources)),
        _section(
            "Duplicates",
            "Among the sampled documents alone, so a lower bound: two copies count only where both were drawn.",
            _duplicates(sources),
        ),
        _section(
            "What preparation dropped", "Documents left after each step, and why the others went.", _dropped(sources)
        ),
        _section(
            "What repeats itself",
            f"The phrases of {N_GRAM} words or more that are in the most sampled documents, and the share that they are in.",
            _repeated(sources),
        ),
    ]
    made = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    names = ", ".join(source.name for source in sources[:6]) + (
        f" and {len(sources) - 6} more" if len(sources) > 6 else ""
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Data report: {escape(names)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>Data report</h1><p class='sub'>{escape(names)}</p>{_tiles(sources)}{''.join(sections)}"
        f"<footer>Made on {made} by python -m harness.data report. Tokens, documents and lengths are counted; languages, "
        "duplicates and phrases are measured on documents drawn at random.</footer></main></body></html>\n"
    )


def short(number: float) -> str:
    """Three digits and a unit."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"


def percent(share: float | None) -> str:
    """With as many digits as it needs."""
    if share is None:
        return "–"
    if share in (0, 1):
        return f"{share:.0%}"
    return f"{share:.1%}" if share >= 0.0995 else f"{share:.2%}"


def _section(title: str, subtitle: str, body: str) -> str:
    """Nothing where there is nothing to show."""
    return f"<section><h2>{title}</h2><p class='sub'>{subtitle}</p>{body}</section>" if body else ""


def _tiles(sources: list[SourceFacts]) -> str:
    documents = sum(source.documents or 0 for source in sources)
    tokens = sum(source.tokens for source in sources)
    tiles = [
        (short(tokens), "tokens"),
        (short(documents), "documents"),
        (short(tokens / documents) if documents else "–", "tokens a document"),
        (str(len(sources)), "source" if len(sources) == 1 else "sources"),
        (
            f"{short(sum(source.bytes for source in sources))}B".replace("BB", "GB")
            .replace("kB", " kB")
            .replace("MB", " MB"),
            "on disk",
        ),
    ]
    return (
        "<div class='tiles'>"
        + "".join(f"<div class='card tile'><b>{a}</b><span>{b}</span></div>" for a, b in tiles)
        + "</div>"
    )


def _overview(sources: list[SourceFacts]) -> str:
    most = max(source.tokens for source in sources)
    rows = []
    for source in sources:
        lengths = source.lengths
        language = next(iter(source.languages.items()), None)
        cells = [
            f"{short(source.documents)}" if source.documents is not None else "–",
            f"{lengths.median:,.0f}" if lengths else "–",
            f"{lengths.mean:,.0f}" if lengths else "–",
            f"{escape(language[0])} {percent(language[1])}" if language else "–",
            percent(source.exact_duplicates),
            percent(source.near_duplicates),
        ]
        rows.append(
            f"<tr><td><b>{escape(source.name)}</b><span class='path'>{escape(source.path)}</span></td>"
            f"<td class='n'>{short(source.tokens)}</td><td class='bar'>{_track(source.tokens / most if most else 0)}</td>"
            + "".join(f"<td class='n'>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    heads = ("documents", "median length", "mean length", "main language", "exact dup.", "near dup.")
    head = "<th>source</th><th class='n'>tokens</th><th></th>" + "".join(f"<th class='n'>{head}</th>" for head in heads)
    notes = "".join(
        f"<div class='note'><b>{escape(source.name)}</b>: {escape(note)}</div>"
        for source in sources
        for note in source.notes
    )
    return f"<div class='card scroll'><table><tr>{head}</tr>{''.join(rows)}</table></div>{notes}"


def _track(share: float, colour: str = "var(--blue)") -> str:
    return f"<div class='track'><i style='width:{100 * share:.2f}%;background:{colour}'></i></div>"


def _cards(sources: list[SourceFacts], body: Callable[[SourceFacts], str]) -> str:
    cards = [
        f"<div class='card'><h3>{escape(source.name)}</h3>{found}</div>"
        for source in sources
        if (found := body(source))
    ]
    return f"<div class='grid'>{''.join(cards)}</div>" if cards else ""


def _lengths(sources: list[SourceFacts]) -> str:
    shown = [source.lengths for source in sources if source.lengths and source.lengths.counted]
    if not shown:
        return ""
    first = min(next(at for at, count in enumerate(found.histogram) if count) for found in shown)
    last = max(len(found.histogram) for found in shown)
    return _cards(sources, lambda source: _histogram(source, first, last))


def _histogram(source: SourceFacts, first: int, last: int) -> str:
    """The same lengths for every source, so that they can be compared."""
    lengths = source.lengths
    if lengths is None or not lengths.counted:
        return ""
    highest = max(lengths.histogram) / lengths.counted
    width, height, left, bottom = 340, 150, 34, 20
    step, top = (width - left - 6) / (last - first), height - bottom - 10
    parts = []
    for mark in (0.5, 1.0):
        y = 10 + top * (1 - mark)
        parts.append(f"<line x1='{left}' x2='{width}' y1='{y:.1f}' y2='{y:.1f}' stroke='#e3e8ee'/>")
        parts.append(f"<text x='{left - 5}' y='{y + 4:.1f}' text-anchor='end'>{highest * mark:.0%}</text>")
    for at, count in enumerate(lengths.histogram):
        tall = top * count / lengths.counted / highest
        x = left + (at - first) * step
        title = f"{2**at:,} to {2 ** (at + 1) - 1:,} tokens: {count:,} documents"
        parts.append(
            f"<rect x='{x + 1:.1f}' y='{10 + top - tall:.1f}' width='{step - 2:.1f}' height='{tall:.1f}' rx='2' fill='#2f6fde'>"
            f"<title>{title}</title></rect>"
        )
    for at in range(first, last, max(1, -(-(last - first) // 7))):
        x, label = left + (at - first) * step, f"{2**at // 1024}k" if at >= 10 else str(2**at)
        parts.append(f"<text x='{x:.1f}' y='{height - 5}' text-anchor='middle'>{label}</text>")
    median = left + (_log2(lengths.median) - first) * step
    parts.append(f"<line x1='{left}' x2='{width}' y1='{10 + top}' y2='{10 + top}' stroke='#aab4c0'/>")
    parts.append(
        f"<line x1='{median:.1f}' x2='{median:.1f}' y1='4' y2='{10 + top}' stroke='#e2733a' stroke-width='2'/>"
    )
    figures = f"median {lengths.median:,.0f} · mean {lengths.mean:,.0f} · 99% under {lengths.p99:,.0f}"
    sampled = "" if lengths.counted == source.documents else f" · of {short(lengths.counted)} documents"
    return f"<svg viewBox='0 0 {width} {height}' role='img'>{''.join(parts)}</svg><div class='small'>{figures}{sampled}</div>"


def _log2(value: float) -> float:
    from math import log2

    return log2(max(value, 1))


def _languages(sources: list[SourceFacts]) -> str:
    shown = [source for source in sources if source.languages]
    if not shown:
        return ""
    totals: dict[str, float] = {}
    for source in shown:
        for language, share in source.languages.items():
            totals[language] = totals.get(language, 0) + share
    names = sorted(totals, key=lambda language: (-totals[language], language))[:SHOWN_LANGUAGES]
    colours = dict(zip(names, COLOURS, strict=False))
    rows = []
    for source in shown:
        parts = [(name, source.languages.get(name, 0.0)) for name in names]
        parts.append(("others", max(0.0, 1 - sum(share for _, share in parts))))
        rows.append(f"<div class='row'><span>{escape(source.name)}</span>{_stack(parts, colours)}</div>")
    legend = [(name, colours[name]) for name in names]
    if any(set(source.languages) - set(names) for source in shown):
        legend.append(("others", COLOURS[-1]))
    return f"<div class='card'>{''.join(rows)}{_legend(legend)}</div>"


def _stack(parts: Iterable[tuple[str, float]], colours: dict[str, str]) -> str:
    cells = [
        f"<i style='width:{100 * share:.3f}%;background:{colours.get(name, COLOURS[-1])}' "
        f"title='{escape(name)} {percent(share)}'>{escape(name) if share > 0.05 else ''}</i>"
        for name, share in parts
        if share > 0.0005
    ]
    return f"<div class='stack'>{''.join(cells)}</div>"


def _legend(entries: list[tuple[str, str]]) -> str:
    return (
        "<div class='legend'>"
        + "".join(f"<span><i style='background:{colour}'></i>{escape(name)}</span>" for name, colour in entries)
        + "</div>"
    )


def _duplicates(sources: list[SourceFacts]) -> str:
    shown = [source for source in sources if source.exact_duplicates is not None]
    if not shown:
        return ""
    most = max([0.01, *((source.exact_duplicates or 0) + (source.near_duplicates or 0) for source in shown)])
    rows = []
    for source in shown:
        exact, near = source.exact_duplicates or 0, source.near_duplicates or 0
        bar = (
            f"<div class='stack'><i style='width:{100 * exact / most:.2f}%;background:{COLOURS[0]}'></i>"
            f"<i style='width:{100 * near / most:.2f}%;background:{COLOURS[1]}'></i></div>"
            f"<span class='small'>{percent(exact)} exact, {percent(source.near_duplicates)} near, of {source.sampled:,} documents</span>"
        )
        rows.append(f"<div class='row'><span>{escape(source.name)}</span><div>{bar}</div></div>")
    legend = _legend([("the same text", COLOURS[0]), ("nearly the same (MinHash)", COLOURS[1])])
    return f"<div class='card'>{''.join(rows)}{legend}<div class='small'>A full bar is {percent(most)}.</div></div>"


def _dropped(sources: list[SourceFacts]) -> str:
    def body(source: SourceFacts) -> str:
        if not source.steps:
            return ""
        read = source.steps[0]["documents"] or 1
        rows = []
        for step in source.steps:
            reasons = ", ".join(
                f"{escape(why)} {short(count)}" for why, count in list(step.get("dropped", {}).items())[:4]
            )
            rows.append(
                f"<li><div class='share'><span>{escape(step['step'].replace('_', ' '))}</span><span>{short(step['documents'])}</span></div>"
                f"{_track(step['documents'] / read)}<span class='small'>{reasons}</span></li>"
            )
        return f"<ol class='phrases'>{''.join(rows)}</ol>"

    return _cards(sources, body)


def _repeated(sources: list[SourceFacts]) -> str:
    def body(source: SourceFacts) -> str:
        items = [
            f"<li><q>{escape(phrase if len(phrase) <= 140 else phrase[:139] + '…')}</q>"
            f"<div class='share'>{_track(share, 'var(--orange)')}<span>{percent(share)}</span></div></li>"
            for phrase, share in source.repeated
        ]
        return f"<ol class='phrases'>{''.join(items)}</ol>" if items else ""

    return _cards(sources, body)
