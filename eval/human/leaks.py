"""The check that a bundle is blind: no name of a model in it, nothing beside pixels, no order or size that tells."""

import base64
import csv
import html
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scipy import stats

from eval.human.key import Key
from eval.human.pictures import beside_pixels
from eval.page import asset

PAYLOAD = re.compile(r"data:image/[a-z]+;base64,([A-Za-z0-9+/]+={0,2})")
DATA = re.compile(r'(<script type="application/json" id="study">)(.*?)(</script>)', re.DOTALL)
CHANCE = 1e-6  # an order that chance gives more rarely than this tells the models apart


def leaks(bundle: Path, names: Iterable[str]) -> list[str]:
    """What a rater could find by looking at the files: a name (whole words, any case), or parts beside the pixels.

    Prompts are left out: both pictures of a pair have the same. The page's own style and script are those of every
    study.
    """
    found = []
    known = [name for name in dict.fromkeys(names) if name]
    for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
        place = str(path.relative_to(bundle))
        if path.suffix in (".png", ".webp"):
            carried, text = [beside_pixels(path.read_bytes())], place
        else:
            said = path.read_text(encoding="utf-8")
            carried = [beside_pixels(base64.b64decode(one)) for one in PAYLOAD.findall(said)]
            text = place + "\n" + _unescaped(_without_prompts(path, PAYLOAD.sub("", said)))
        found += [f"{one} in a picture of {place}" for one in carried if one]
        found += [f"{name!r} in {place}" for name in known if _stands_in(name, text)]
    return found


def giveaways(pictures: Path, owner: Mapping[str, str], key: Key) -> list[str]:
    """Orders and sizes that go with the model: of file names, of files, of sides."""
    found = []
    if len({path.stat().st_size for path in pictures.iterdir()}) > 1:
        found.append("the picture files differ in size")
    order = [owner[path.name] for path in sorted(pictures.iterdir()) if path.name in owner]
    ranks = [[at for at, model in enumerate(order) if model == one] for one in key.models]
    if len(ranks) > 1 and len(order) > len(ranks) and float(stats.kruskal(*ranks).pvalue) < CHANCE:
        found.append("the names of the picture files are in the order of the models")
    pairs = [item for item in key.items.values() if item.kind == "pair" and item.second]
    left = sum(item.first_left for item in pairs)
    if pairs and float(stats.binomtest(left, len(pairs)).pvalue) < CHANCE:
        found.append(f"the first model of a pair stands left {left} times of {len(pairs)}")
    return found


def _stands_in(name: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


def _without_prompts(path: Path, text: str) -> str:
    """The text of a file of the bundle without the prompts that it shows."""
    if path.suffix == ".html":
        for own in (asset("page.css"), asset("study.css"), asset("study.js")):
            text = text.replace(own, "")
        return DATA.sub(lambda match: match[1] + json.dumps(_blank(json.loads(match[2]))) + match[3], text)
    if path.suffix == ".json":
        return json.dumps(_blank(json.loads(text)))
    if path.suffix in (".csv", ".tsv"):
        rows = csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ",")
        kept = [{k: v for k, v in row.items() if not k.endswith("prompt")} for row in rows]
        return json.dumps(kept)
    return text


def _blank(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: "" if key == "prompt" else _blank(one) for key, one in value.items()}
    return [_blank(one) for one in value] if isinstance(value, list) else value


def _unescaped(text: str) -> str:
    """HTML and JSON escapes as the characters they stand for."""
    units = re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), html.unescape(text))
    return units.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
