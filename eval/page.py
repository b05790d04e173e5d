"""Self-contained HTML pages: templates that escape, one policy by hashes, pictures as data, files that appear whole.

Captions and model outputs are hostile input. They reach a page only through autoescaped slots or a JSON data block;
the policy names the hash of our own style and script, so that nothing else on the page can run or load.
"""

import base64
import contextlib
import hashlib
import io
import os
import unicodedata
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageOps

TEMPLATES = Path(__file__).parent / "templates"
POLICY = (
    "default-src 'none'; img-src data:; style-src {style}; script-src {script}; base-uri 'none'; form-action 'none'"
)
LOSSLESS = 160  # pictures up to this many pixels a side stay PNG, larger ones become WebP thumbnails
LARGEST = 768
QUALITY = 90  # of WebP


def environment() -> Environment:
    """Templates with autoescape on, undefined names an error, control characters replaced and NaN refused in JSON."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    made.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False, "ensure_ascii": True}
    return made


def render(made: Environment, template: str, style: str, script: str, **values: object) -> str:
    """The page of `template` with this style and script inline and a policy that allows exactly these two."""
    if "</" in style or "</" in script:
        raise ValueError("the page's own style or script holds '</', which would close its element; write it as '<\\/'")
    policy = POLICY.format(style=fingerprint(style), script=fingerprint(script))
    page = made.get_template(template)
    return page.render(policy=policy, style=Markup(style), script=Markup(script), **values)


def fingerprint(text: str) -> str:
    """The source expression by which a content security policy allows one inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def asset(name: str) -> str:
    """The text of a style or script file that lies beside the templates."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def visible(value: object) -> object:
    """What a template prints: text without what HTML cannot hold; markup and other values unchanged."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def printable(text: str) -> str:
    """The text with control characters and lone surrogates replaced by U+FFFD."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in text)


def bare(image: Image.Image) -> Image.Image:
    """The same pixels as RGB on white, upright, without anything else that the file carried (EXIF, text, profiles)."""
    upright = image
    with contextlib.suppress(SyntaxError, ValueError):  # a damaged EXIF block says nothing about the orientation
        upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    rgb = upright.convert("RGB")
    return Image.frombytes("RGB", rgb.size, rgb.tobytes())


def png(image: Image.Image) -> bytes:
    """The pixels as a PNG of three chunk kinds: header, data, end."""
    buffer = io.BytesIO()
    bare(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    """A picture for a page: PNG while small, else a WebP of at most LARGEST pixels a side."""
    if not lossy(image):
        return as_uri("image/png", png(image))
    small = bare(image)
    small.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY)
    return as_uri("image/webp", buffer.getvalue())


def lossy(image: Image.Image) -> bool:
    """Whether `data_uri` shows a picture that is not the same to the last bit."""
    return max(image.size) > LOSSLESS


def as_uri(kind: str, content: bytes) -> str:
    """Bytes as a data: address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def write_whole(path: Path, text: str) -> None:
    """Write `text` under a temporary name, flush it to disk and rename it: readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(text.encode("utf-8", "backslashreplace"))
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
