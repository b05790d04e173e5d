"""Pictures of a study: nothing but the pixels differs, with one encoder, one size of file, names that say nothing."""

import hashlib
import hmac
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from eval.human.errors import StudyError, named
from eval.page import bare

Picture = Path | Image.Image
Encoder = Literal["png", "webp"]
WEBP_QUALITY = 95
DATE = 946_684_800  # of all files: the first second of 2000
PNG = b"\x89PNG\r\n\x1a\n"
PNG_PARTS = (b"IHDR", b"IDAT", b"IEND")
WEBP_PARTS = (b"VP8 ", b"VP8L")


def secret_name(secret: str, *parts: object) -> str:
    """A name that only who knows the secret can tell: 16 hexadecimal digits of an HMAC."""
    said = "/".join(map(str, parts)).encode("utf-8", "backslashreplace")
    return hmac.new(secret.encode(), said, hashlib.sha256).hexdigest()[:16]


def opened(picture: Picture) -> Image.Image:
    """The pixels as RGB on white, upright, without anything else. Raises StudyError that names the file."""
    if isinstance(picture, Image.Image):
        return bare(picture)
    try:
        with Image.open(picture) as image:
            image.load()
            return bare(image)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise StudyError(f"picture {picture} is missing: draw it again or take its prompt off the list") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise StudyError(f"picture {picture} cannot be read ({error}): draw it again") from error


def opened_together(prompt: str, given: Mapping[str, Picture]) -> dict[str, Image.Image]:
    """Open the pictures of one prompt by their models. Raises StudyError where they differ in size."""
    images = {model: opened(picture) for model, picture in given.items()}
    if len({image.size for image in images.values()}) > 1:
        said = ", ".join(f"{model} {image.width} x {image.height}" for model, image in images.items())
        raise StudyError(f"the pictures of {prompt!r} differ in size, which tells models apart: {said}; resize them")
    return images


def check_counts(prompts: Sequence[str], pictures: Mapping[str, Sequence[Picture]]) -> None:
    """Refuse models that do not have one picture for each prompt."""
    for model, given in pictures.items():
        if len(given) != len(prompts):
            raise StudyError(f"{model} has {len(given)} pictures for {len(prompts)} prompts: give one for each prompt")


def encode(image: Image.Image, encoder: Encoder) -> bytes:
    """A file that holds the pixels and nothing else."""
    buffer = io.BytesIO()
    if encoder == "png":
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "WEBP", quality=WEBP_QUALITY)
    return buffer.getvalue()


def make_alike(folder: Path) -> None:
    """Give all files of a folder one length, by zeros after their end, which every reader skips, and one date.

    A smooth picture makes a short file: the length would tell models apart.
    """
    files = sorted(folder.iterdir())
    longest = max((path.stat().st_size for path in files), default=0)
    for path in files:
        with path.open("ab") as handle:
            handle.write(b"\0" * (longest - path.stat().st_size))
        os.utime(path, (DATE, DATE))


def beside_pixels(content: bytes) -> str:
    """What a picture file carries beside its pixels, in words; nothing for one as it should be."""
    parts, rest = _parts(content)
    unknown = [kind.decode("latin-1") for kind in parts if kind not in (*PNG_PARTS, *WEBP_PARTS)]
    if unknown:
        return f"the parts {named(unknown)}"
    return f"{len(rest)} bytes after its end" if rest.strip(b"\0") else ""


def _parts(content: bytes) -> tuple[list[bytes], bytes]:
    """The kinds of the parts of a PNG or WebP file, and what follows its end."""
    kinds: list[bytes] = []
    if content.startswith(PNG):
        at = len(PNG)
        while at + 8 <= len(content) and kinds[-1:] != [b"IEND"]:
            length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
            kinds.append(kind)
            at += 12 + length
        return kinds, content[at:]
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        end, at = 8 + int.from_bytes(content[4:8], "little"), 12
        while at + 8 <= end:
            kinds.append(content[at : at + 4])
            length = int.from_bytes(content[at + 4 : at + 8], "little")
            at += 8 + length + length % 2
        return kinds, content[end:]
    return [b"no PNG or WebP"], b""
