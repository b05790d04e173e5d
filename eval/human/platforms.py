"""Tasks for platforms that show pictures by their addresses: Label Studio, Mechanical Turk, Toloka, Prolific."""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from eval.human.criteria import CRITERIA
from eval.human.study import Study

WORDS = {"left": "A", "right": "B", "tie": "tie", "both_bad": "both bad"}
SIDES = {"left": "A", "right": "B"}


def words_for(choice: str) -> str:
    """How a choice is written on a button."""
    return WORDS.get(choice, choice)


def table(rows: Sequence[Mapping[str, Any]], delimiter: str, *, prefix: str = "", markup: bool = False) -> str:
    """Rows as CSV or TSV. markup: as HTML in ASCII, for platforms that paste a cell into their page as it stands."""
    buffer = io.StringIO()
    names = list(rows[0])
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
    writer.writerow([prefix + name for name in names])
    for row in rows:
        writer.writerow([_markup(str(row[name])) if markup else _one_line(row[name], delimiter) for name in names])
    return buffer.getvalue()


def labelstudio_tasks(tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tasks as Label Studio imports them."""
    return [{"data": dict(task)} for task in tasks]


def labelstudio_config(study: Study) -> str:
    """The labelling interface: the prompt, the pictures, and one question per criterion (`Pairwise` knows no tie)."""
    pairwise = study.mode == "pairwise"
    sides = ["left", "right"] if pairwise else ["left"]
    lines = ["<View>", '  <Text name="prompt" value="$prompt"/>', '  <View style="display:flex;gap:16px">']
    for side in sides:
        head = f'<Header value="{SIDES[side]}"/>' if pairwise else ""
        lines += [f'    <View style="flex:1">{head}<Image name="{side}" value="${side}" zoom="true"/></View>']
    lines += ["  </View>"]
    for name in study.criteria:
        one = CRITERIA[name]
        lines += [f"  <Header value={quoteattr(one.pair if pairwise else one.grade)}/>"]
        if pairwise:
            lines += [f'  <Choices name="{name}" toName="left" choice="single" showInline="true" required="true">']
            lines += [f'    <Choice value="{words_for(choice)}" alias="{choice}"/>' for choice in study.choices]
            lines += ["  </Choices>"]
        else:
            lines += [f'  <Rating name="{name}" toName="left" maxRating="5" required="true"/>']
    if study.tags and "defects" in study.criteria:
        for side in sides:
            title = f"Defects of {SIDES[side]}" if pairwise else "Defects"
            lines += [
                f'  <Header value="{title}"/>',
                f'  <Choices name="tags_{side}" toName="{side}" choice="multiple">',
            ]
            lines += [f"    <Choice value={quoteattr(tag)}/>" for tag in study.tags] + ["  </Choices>"]
    return "\n".join([*lines, "</View>"]) + "\n"


def mturk_page(study: Study) -> str:
    """The page of one task; the names of its inputs are the columns `Answer.*` of the results."""
    pairwise = study.mode == "pairwise"
    shown = "".join(
        f'<figure style="margin:0;flex:1"><img src="${{{side}}}" style="width:100%" alt="picture {letter}">'
        f"<figcaption>{letter if pairwise else ''}</figcaption></figure>\n"
        for side, letter in (SIDES.items() if pairwise else [("left", "")])
    )
    parts = [
        f"<h3>{escape(study.title)}</h3>",
        "<p>${prompt}</p>",
        f'<div style="display:flex;gap:16px">\n{shown}</div>',
    ]
    for name in study.criteria:
        one = CRITERIA[name]
        anchors = dict(zip("12345", one.anchors, strict=True))
        buttons = "".join(
            f'<label style="margin-right:1em"><input type="radio" name="{name}" value="{choice}" required> '
            f"{escape(words_for(choice) if pairwise else f'{choice} {anchors[choice]}')}</label>"
            for choice in study.choices
        )
        parts.append(f"<p>{escape(one.pair if pairwise else one.grade)}<br>{buttons}</p>")
    return "\n".join(parts) + "\n"


def _markup(text: str) -> str:
    """Text as HTML in ASCII: Mechanical Turk refuses characters beyond the basic plane, and does not escape."""
    return html.escape(text).encode("ascii", "xmlcharrefreplace").decode().replace("\n", "&#10;")


def _one_line(value: Any, delimiter: str) -> str:
    return " ".join(str(value).split()) if delimiter == "\t" else str(value)
