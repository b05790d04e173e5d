"""Matplotlib's SVG made fit for a page whose policy blocks style attributes: inline, with ids of its own."""

import re
from xml.etree import ElementTree

from markupsafe import Markup

from eval.page import printable


def inline(svg: str, title: str, prefix: str) -> Markup:
    """Matplotlib's SVG made fit for an HTML page: styles as attributes, ids unique to the page, nothing that loads."""
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
    root.attrib.clear()
    root.attrib.update({"class": "chart", "viewBox": " ".join(size), "role": "img", "aria-label": printable(title)})
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _attributes(attributes: dict[str, str], prefix: str) -> dict[str, str]:
    """Presentation attributes from a style, and ids with the prefix; the page sets font families."""
    made = {}
    for name, value in attributes.items():
        if name == "style":
            made.update(_presentation(value))
        elif name == "id":
            made["id"] = prefix + value
        elif name == "href":
            made["href"] = "#" + prefix + value.removeprefix("#")
        else:
            made[name] = value.replace("url(#", f"url(#{prefix}")
    return made


def _presentation(style: str) -> dict[str, str]:
    pairs = (part.split(":", 1) for part in style.split(";") if ":" in part)
    made = {name.strip(): value.strip() for name, value in pairs}
    font = made.pop("font", None)
    size = re.search(r"([\d.]+)px", font) if font else None
    return made | ({"font-size": size[1]} if size else {})


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]
