"""The report of an audit as one HTML file: no script, no other file, no other host.

Names of files, classes and models come from anywhere. `_fill` alone puts values into templates, and escapes each that
is not HTML made here.
"""

import base64
import html
import io
import math
from collections.abc import Hashable, Iterable
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from .images import overlay

if TYPE_CHECKING:
    from .auditing import Audit

__all__ = ["page", "verdict_table"]

SIDE = 160  # of the pictures, in pixels
SIGNS = {"passes": "✓", "warns": "!", "fails": "✗", "not tested": "–"}
TITLES = {
    "alike": "Rank correlation of a map with that of",
    "ROAD": "ROAD: more is better",
    "deletion": "Deletion: less is better",
    "insertion": "Insertion: more is better",
}

TABLE_STYLE = """
.verdicts { border-collapse: collapse; width: 100%; text-align: left }
.verdicts th, .verdicts td { vertical-align: top; padding: .55rem .75rem .55rem 0; font-weight: normal;
  border-top: 1px solid var(--line, #8884); text-align: left; white-space: normal }
.verdicts thead th { border: 0; color: var(--soft, inherit); font-size: .875rem }
.verdicts tbody th { width: 16%; font-weight: 600 }
.verdicts td:nth-child(3) { width: 38% }
.verdicts small { display: block; line-height: 1.4; color: var(--soft, inherit) }
.verdicts .verdict { white-space: nowrap; font-weight: 600 }
.verdicts tr { break-inside: avoid }
.verdicts .passes { color: var(--passes, inherit) }
.verdicts .warns { color: var(--warns, inherit) }
.verdicts .fails { color: var(--fails, inherit) }
@media (max-width: 44rem) {
  .verdicts, .verdicts tbody, .verdicts tr, .verdicts th, .verdicts td { display: block; width: auto !important }
  .verdicts thead { position: absolute; clip-path: inset(50%) }
  .verdicts tbody th, .verdicts td { border: 0; padding: .1rem 0 }
  .verdicts tr { border-top: 1px solid var(--line, #8884); padding: .6rem 0 }
}
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Audit of $model</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --page: #fff; --card: #f6f8fa;
  --passes: #116329; --warns: #7d4e00; --fails: #b3161b; --map: #0b62b8; --other: #6e7781 }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b1; --line: #30363d;
  --page: #0d1117; --card: #161b22; --passes: #56d364; --warns: #e3b341; --fails: #ff8a80; --map: #6cb6ff;
  --other: #8b949e } }
* { box-sizing: border-box }
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 72rem;
  margin: 0 auto; padding: 1.5rem 1rem 3rem; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem }
h3 { font-size: 1rem; margin: 0 0 .25rem }
p { max-width: 46rem; margin: .5rem 0 }
.soft, dt, figcaption span { color: var(--soft) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 1rem 0 }
dd { margin: 0 }
code { font: .875em ui-monospace, monospace }
.suspects { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17.5rem), 1fr)); gap: 1rem;
  padding: 0; list-style: none }
figure { height: 100%; margin: 0; padding: .75rem; background: var(--card); border-radius: 8px; break-inside: avoid }
figure div { display: flex; gap: .5rem }
figure img { width: calc(50% - .25rem); height: auto; align-self: start; border-radius: 3px }
figcaption { font-size: .875rem; line-height: 1.4; margin-top: .5rem }
figcaption span { display: block }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem 3rem }
svg { display: block; width: 100%; max-width: 30rem }
svg text { font: 13px system-ui, sans-serif; fill: currentColor }
@media print { html { font-size: 11px } body { max-width: none; padding: 0 } }
$table_style</style>
</head>
<body>
<main>
<h1>Audit of $model</h1>
$summary
<dl>$about</dl>
<h2>Verdicts</h2>
<p class="soft">In brackets: 95 % bootstrap intervals over the images looked at; of the accuracy, Wilson’s.</p>
$verdicts
<h2>The most suspicious images</h2>
<p>$how_many</p>
$suspects
<h2>What the scores are compared with</h2>
$charts
<h2>To repeat it</h2>
<p><code>$call</code></p>
<p class="soft">The same network, data set, seed and versions give the same figures.</p>
</main>
</body>
</html>
"""
TABLE = """<table class="verdicts"><thead><tr><th scope="col">Test</th><th scope="col">Verdict</th>
<th scope="col">Figure and bar</th><th scope="col">What it means</th></tr></thead><tbody>$rows</tbody></table>"""
ROW = """<tr><th scope="row">$test</th><td class="verdict $verdict">$sign $verdict</td>
<td>$figure<small>$measure.</small><small>$bar</small></td><td>$meaning</td></tr>"""
SUSPECT = """<li><figure><div><img src="$picture" width="$w" height="$h" alt="Picture of $name">$overlaid</div>
<figcaption><strong>$name</strong><span>$said</span>$why.</figcaption></figure></li>"""
OVERLAID = '<img src="$heat" width="$w" height="$h" alt="Map of $name for $prediction, over the picture">'
CHART = """<section><h3>$title</h3><svg viewBox="0 0 360 $height" role="img" aria-label="$label">
$marks</svg></section>"""
MARK = """<text x="6" y="$y">$of</text><text x="354" y="$y" text-anchor="end">$figure</text>
<path d="M$zero ${y}m0 5v16" stroke="var(--line)" stroke-width="2"/>
<path d="M$low $line H$high" stroke="$colour" stroke-width="3"/><circle cx="$at" cy="$line" r="5" fill="$colour"/>"""


class _Markup(str):
    """HTML that was made here, and stays as it is."""


def _fill(template: str, **values: object) -> _Markup:
    safe = {k: v if isinstance(v, _Markup) else html.escape(str(v)) for k, v in values.items()}
    return _Markup(Template(template).substitute(safe))


def _join(parts: Iterable[_Markup]) -> _Markup:
    """Parts that `_fill` made, one after the other."""
    return _Markup("".join(parts))


def page(report: "Audit") -> str:
    """The whole report."""
    verdicts, images = report.verdicts, report.images
    by = {verdict: list(verdicts.index[verdicts["verdict"] == verdict]) for verdict in SIGNS}
    summary = [f"{len(by.pop('passes'))} of {len(verdicts)} tests passed."]
    summary += [f"{_sentence(verdict)}: {', '.join(tests)}." for verdict, tests in by.items() if tests]
    suspects = images[images["why"] != ""]
    how_many = f"{len(suspects)} of the {len(images)} images looked at are worth a look, for the reason below each."
    if len(suspects) > len(report.pictures):
        how_many += f" These {len(report.pictures)} are the most suspicious of each kind; report.images lists all."
    shown = suspects[suspects["index"].isin(report.pictures)].to_dict("records")
    cards = _join(_suspect(row, *report.pictures[row["index"]]) for row in shown)
    charts = _join(_chart(title, report.scores[report.scores["test"] == test]) for test, title in TITLES.items())
    return _fill(
        PAGE,
        table_style=_Markup(TABLE_STYLE),
        model=report.about["model"],
        summary=_join(_fill("<p>$line</p>", line=line) for line in summary),
        about=_join(_fill("<dt>$k</dt><dd>$v</dd>", k=k, v=v) for k, v in report.about.items() if k != "call"),
        verdicts=_table(verdicts),
        how_many=how_many,
        suspects=_fill('<ul class="suspects">$cards</ul>', cards=cards) if cards else "",
        charts=_fill('<div class="charts">$charts</div>', charts=charts) if charts else "No score could be made.",
        call=report.about["call"],
    )


def verdict_table(verdicts: pd.DataFrame) -> str:
    """The table of verdicts alone, with its style, for a notebook."""
    return f"<style>{TABLE_STYLE}</style>{_table(verdicts)}"


def _table(verdicts: pd.DataFrame) -> _Markup:
    rows = []
    for test, row in verdicts.to_dict("index").items():
        figure = _figure(row) if math.isfinite(row["value"]) else ""
        bar = f"Bar {_number(row['bar'])}: {row['why_this_bar']}." if math.isfinite(row["bar"]) else ""
        texts = {name: row[name] for name in ("verdict", "meaning")} | {"measure": _sentence(row["measure"])}
        rows.append(_fill(ROW, test=test, sign=SIGNS[row["verdict"]], figure=figure, bar=bar, **texts))
    return _fill(TABLE, rows=_join(rows))


def _suspect(row: dict[Hashable, Any], picture: np.ndarray, heat: np.ndarray | None) -> _Markup:
    times = SIDE / max(picture.shape[:2])
    w, h = (max(1, round(side * times)) for side in picture.shape[1::-1])
    # A small picture is enlarged pixel by pixel: it is shown as the network gets it.
    how = Image.Resampling.NEAREST if times > 1 else Image.Resampling.BOX
    picture = np.array(Image.fromarray(picture).resize((w, h), how))
    texts, overlaid = {"name": row["name"], "prediction": row["prediction"], "w": w, "h": h}, ""
    if heat is not None:
        overlaid = _fill(OVERLAID, heat=_data_uri(overlay(picture, heat)), **texts)
    said = [f"label {row['label']}"] if row["label"] is not None else []
    said += [f"prediction {row['prediction']}, {row['confidence']:.0%}"] if row["prediction"] is not None else []
    why, line = _sentence(row["why"]), _sentence("; ".join(said))
    return _fill(SUSPECT, picture=_data_uri(picture), overlaid=overlaid, said=line, why=why, **texts)


def _data_uri(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _chart(title: str, rows: pd.DataFrame) -> _Markup:
    """Of each row a dot with its interval, on one axis; nothing of no rows."""
    if rows.empty:
        return _Markup()
    low, high = min(0, rows["low"].min()), max(0, rows["high"].max(), rows["low"].min() + 1e-9)

    def place(value: float) -> str:
        return f"{6 + 348 * (value - low) / (high - low):.1f}"

    marks, told = [], []
    for k, row in enumerate(rows.to_dict("records")):
        at = {"at": place(row["value"]), "low": place(row["low"]), "high": place(row["high"]), "zero": place(0)}
        colour = "var(--map)" if row["of"] == "the map" else "var(--other)"
        marks.append(
            _fill(MARK, y=18 + 42 * k, line=31 + 42 * k, of=row["of"], figure=_figure(row), colour=colour, **at)
        )
        told.append(f"{row['of']} {_figure(row)}")
    label, height = f"{title}: {', '.join(told)}", 42 * len(marks)
    return _fill(CHART, title=title, height=height, label=label, marks=_join(marks))


def _figure(row: dict[Hashable, Any]) -> str:
    interval = f" [{_number(row['low'])}, {_number(row['high'])}]" if math.isfinite(row["low"]) else ""
    return _number(row["value"]) + interval


def _number(value: float) -> str:
    """Three decimals, without zeros at the end, and with a minus sign for what is negative then."""
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text.replace("-", "−")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
