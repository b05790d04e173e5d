"""Matplotlib's SVG made fit for a page whose policy blocks style attributes: inline, small, with ids of its own."""

import re
from xml.etree import ElementTree

from markupsafe import Markup

from eval.page import printable

PLACES = 2  # decimals of a coordinate; a chart is some 300 units wide
NUMBERS = ("d", "x", "y", "width", "height", "transform", "points")  # attributes that are coordinates
PAINT = {"fill", "stroke", "stroke-width"}


def inline(svg: str, title: str, prefix: str) -> Markup:
    """Matplotlib's SVG made fit for an HTML page: styles as attributes, ids unique to the page, nothing that loads.

    A report holds hundreds of charts, so that what shows nothing is left out: fonts (the page sets them), ids that
    nothing refers to, groups that say nothing, unpainted paths, white space, and decimals beyond PLACES.
    """
    root = ElementTree.fromstring(re.sub(r"<!DOCTYPE[^>]*>", "", svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(_attributes(attributes, prefix))
    size = root.get("viewBox", "0 0 0 0").split()
    _bare(root)
    _unwrap(root)
    _join(root)
    root.attrib.clear()
    root.attrib.update({"class": "chart", "viewBox": " ".join(size), "role": "img", "aria-label": printable(title)})
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _bare(root: ElementTree.Element) -> None:
    """Leave out ids without references, white space, and what a `use` says once more of what it uses."""
    values = [value for element in root.iter() for name, value in element.attrib.items() if name != "id"]
    used = {name for value in values for name in re.findall(r"#([^)]+)", value)}
    known = {element.get("id"): element for element in root.iter()}
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        if element.tag == "use":
            said = known[element.get("href", "").removeprefix("#")].attrib  # its own attributes win over those of `use`
            for name in said.keys() & PAINT:
                element.attrib.pop(name, None)
        if not (element.text or "").strip():
            element.text = None
        element.tail = None  # matplotlib has text in <text> alone


def _unwrap(parent: ElementTree.Element) -> None:
    """Put the children of groups without attributes in their place; drop definitions of nothing and unpainted paths."""
    kept = []
    for child in parent:
        _unwrap(child)
        if child.tag == "g" and not child.attrib:
            kept += list(child)
        elif not (child.tag == "defs" and not len(child)) and not (
            child.get("fill") == "none" and not child.get("stroke")
        ):
            kept.append(child)
    parent[:] = kept


def _join(root: ElementTree.Element) -> None:
    """Make one path of lines that look alike: those of a grid, which nothing between them in the file ever meets."""
    first: dict[tuple[tuple[str, str], ...], ElementTree.Element] = {}
    for path in root.findall("path"):
        look = tuple(sorted((name, value) for name, value in path.attrib.items() if name != "d"))
        if path.get("stroke-linecap") != "square" or path.get("fill") != "none" or path.get("d", "").count("L") != 1:
            continue
        if look in first:
            first[look].set("d", f"{first[look].get('d')} {path.get('d')}")
            root.remove(path)
        else:
            first[look] = path


def _attributes(attributes: dict[str, str], prefix: str) -> dict[str, str]:
    """Presentation attributes from a style, short coordinates, and ids with the prefix."""
    made = {}
    for name, value in attributes.items():
        if name == "style":
            made.update(_presentation(value))
        elif name == "id":
            made["id"] = prefix + value
        elif name == "href":
            made["href"] = "#" + prefix + value.removeprefix("#")
        elif name in NUMBERS:
            made[name] = _short(value)
        else:
            made[name] = value.replace("url(#", f"url(#{prefix}")
    if re.match(r"rotate\(-?0 ", made.get("transform", "")):
        del made["transform"]  # by no angle
    return made


def _short(coordinates: str) -> str:
    """Coordinates with PLACES decimals at most and single spaces."""
    rounded = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.{PLACES}f}".rstrip("0").rstrip("."), coordinates)
    return " ".join(rounded.split())


def _presentation(style: str) -> dict[str, str]:
    """A style as attributes; of fonts the size alone, since the page sets families."""
    pairs = (part.split(":", 1) for part in style.split(";") if ":" in part)
    made = {name.strip(): value.strip() for name, value in pairs}
    font = made.pop("font", None)
    made.pop("font-family", None)
    size = re.search(r"([\d.]+)px", font) if font else None
    return made | ({"font-size": size[1]} if size else {})


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]
