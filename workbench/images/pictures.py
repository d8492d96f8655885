"""Pictures as users have them (files, PIL images, arrays, bytes) -> 8-bit RGB, or an error that names what is wrong."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = 336
"""Longer side of the thumbnails that readings keep, in pixels."""
_ACCEPTED = (
    "A picture is a path, an http(s) or data URL, bytes of a file, an open file, a PIL image, or an array [height, "
    "width, 3] (or [3, height, width], or [height, width] for grey) of 8-bit values or of floats from 0 to 1."
)


class Picture:
    """One picture of a prompt.

    What was given by name or as bytes is read again when its pixels are needed, so that a hundred photographs do not
    lie in memory unpacked.

    Attributes
    ----------
    width, height
        Of the picture as the model's processor gets it, in pixels (turned upright, where a camera said how).
    digest
        16 hex digits over its pixels.
    """

    def __init__(self, source: Any, what: str = "The picture") -> None:
        if callable(getattr(source, "read", None)):  # an open file
            source = _read(source, what)
        self._source, self._what = source, what
        upright = _opened(source, what)
        self.width, self.height = upright.size
        found = hashlib.blake2b(repr(upright.size).encode(), digest_size=8)
        found.update(upright.tobytes())
        self.digest = found.hexdigest()
        self.thumbnail = _thumbnail(upright)
        self._held = None if _named(source) else upright

    def __repr__(self) -> str:
        return f"Picture({self.width} x {self.height})"

    @property
    def rgb(self) -> Image:
        """The pixels, 8-bit RGB."""
        return self._held if self._held is not None else _opened(self._source, self._what)


def is_picture(value: Any) -> bool:
    """Whether a value is one picture, not several."""
    return (
        _named(value) or isinstance(value, Picture) or callable(getattr(value, "read", None))
        or hasattr(value, "getbands") or getattr(value, "ndim", None) in (2, 3)
    )  # fmt: skip


def pictures_of(value: Any, what: str) -> list[Picture]:
    """One picture or several -> several."""
    if value is None:
        return []
    if is_picture(value):
        value = [value]
    if hasattr(value, "ndim") or isinstance(value, Iterator):  # a stack of them, a column of a table
        value = list(value)
    if not isinstance(value, Sequence):
        raise InputError(f"The images of {what} are a {type(value).__name__}. {_ACCEPTED} Give one, or a list of them.")
    return [picture_of(one, f"Picture {i} of {what}") for i, one in enumerate(value)]


def picture_of(value: Any, what: str) -> Picture:
    return value if isinstance(value, Picture) else Picture(value, what)


def _named(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview))


def _opened(source: Any, what: str) -> Image:
    """The source as an upright 8-bit RGB image."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Image.Image):
        return _upright(source, what, repr(source)[1:60])
    if not _named(source):
        return _upright(_from_array(source, what), what, "an array")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(_file(source, what))
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{what} is too large to be opened safely: {error} Shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS."
        ) from error
    except FileNotFoundError as error:
        raise InputError(f"{what}: there is no file {_short(source)}.") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{what} is no picture that Pillow can read ({_short(source)}): the file is empty, damaged, cut off, or of "
            "another kind."
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{what} could not be opened ({_short(source)}): {str(error)[:200]}") from error
    with image:
        return _upright(image, what, _short(source))


def _upright(image: Image, what: str, source: str) -> Image:
    from PIL import ImageOps

    # Cameras save further pictures behind the one that was taken (previews, depth) in MPO files.
    frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
    if frames > 1:
        raise InputError(
            f"{what} has {frames} frames, and one picture is read. Choose a frame: image.seek(k), then give "
            "image.convert('RGB')."
        )
    try:
        image.load()
        turned = ImageOps.exif_transpose(image)
        image = turned if turned is not None else image
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(
            f"{what} is damaged or cut off ({source}): {error}. What is missing would be read as grey."
        ) from error
    if 0 in image.size:
        raise InputError(f"{what} is empty: {image.size[0]} x {image.size[1]} pixels.")
    try:
        return _rgb(image, what)
    except ValueError as error:
        raise InputError(f"{what} has pixels of mode {image.mode}, which is not made RGB here: {error}.") from error


def _rgb(image: Image, what: str) -> Image:
    """8-bit RGB, as transformers' own loading has it; what that would clip or hide is told."""
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"{what} has values from {values.min()} to {values.max()}: scale them to 8 bits.")
        # Pillow's own conversion clips at 255.
        small = (values + 128) // 257 if values.max() > 255 else values
        return Image.fromarray(small.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise InputError(f"{what} has floating-point pixels (mode F), whose range is not known: scale them to 8 bits.")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:  # type: ignore[index]
            warnings.warn(
                f"{what} has transparent parts. Models see no transparency: the colours that lie beneath are read. To "
                "see it as on white: Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).",
                stacklevel=2,
            )
    return image.convert("RGB")


def _from_array(source: Any, what: str) -> Image:
    from PIL import Image

    if hasattr(source, "detach"):
        source = source.detach().float().cpu() if source.is_floating_point() else source.detach().cpu()
    if not hasattr(source, "__array__"):
        raise InputError(f"{what} is a {type(source).__name__}. {_ACCEPTED}")
    values = np.asarray(source)
    if values.dtype.kind not in "uifb":
        raise InputError(f"{what} is an array of {values.dtype}. {_ACCEPTED}")
    if values.ndim == 3 and values.shape[0] in (1, 3, 4) and values.shape[2] not in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or 0 in values.shape:
        raise InputError(f"{what} is an array of shape {values.shape}. {_ACCEPTED}")
    if values.dtype == bool:
        values = values * np.uint8(255)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise InputError(f"{what} is an array with NaN or infinity in it. {_ACCEPTED}")
        if values.min() < 0 or values.max() > 1:
            raise InputError(
                f"{what} is an array of floats from {values.min():.3g} to {values.max():.3g}; floats are taken as 0 to "
                "1. Give 8-bit values, or scale it. What a processor made (pixel_values) is no picture: give the "
                "processor's whole output instead, with its input_ids."
            )
        values = np.round(values * 255)
    if values.min() < 0 or values.max() > 255:
        raise InputError(f"{what} is an array of {values.min()} to {values.max()}; pictures have 0 to 255.")
    return Image.fromarray(np.ascontiguousarray(values.astype(np.uint8)))


def _file(source: Any, what: str) -> Any:
    """Something that Pillow opens."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    text = os.fspath(source)
    if text.startswith(("http://", "https://", "data:", "file:")):
        import urllib.request

        try:
            with urllib.request.urlopen(text, timeout=30) as answer:
                return io.BytesIO(answer.read())
        except urllib.error.URLError as error:
            raise InputError(f"{what} could not be fetched from {_short(text)}: {error.reason}") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{what} could not be fetched from {_short(text)}: {error}") from error
    path = Path(text).expanduser()
    if path.is_dir():
        raise InputError(f"{what}: {text!r} is a folder. Give the pictures in it: sorted(Path({text!r}).iterdir()).")
    return path


def _read(file: Any, what: str) -> bytes:
    """All bytes of an open file."""
    if file.seekable():
        file.seek(0)
    found = file.read()
    if not isinstance(found, (bytes, bytearray)):
        raise InputError(f"{what} is a file that was opened as text. Open it with mode 'rb', or give its path.")
    return bytes(found)


def _short(source: Any) -> str:
    return f"{len(source)} bytes" if not isinstance(source, (str, os.PathLike)) else repr(os.fspath(source)[:120])


def _thumbnail(image: Image) -> str:
    """A small JPEG as a data URI."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def image_token(processor: Any) -> str | None:
    """What a text has in the place of a picture; None where the processor does not say."""
    for owner, name in ((processor, "boi_token"), (processor, "image_token"), (processor.tokenizer, "image_token")):
        token = getattr(owner, name, None)
        # Gemma's texts name the token that begins a picture, and its processor writes those that stand for patches.
        if name == "boi_token" and not hasattr(processor, "full_image_sequence"):
            continue
        if token is not None:
            return str(getattr(token, "content", token))
    return None


def noise(size: tuple[int, int], seed: int, cells: int = 8) -> Image:
    """A picture of coloured squares, so many to its shorter side, in random colours."""
    from PIL import Image

    side = max(1, min(size) // cells)
    shape = (-(-size[1] // side), -(-size[0] // side), 3)
    colours = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    large = colours.repeat(side, 0).repeat(side, 1)[: size[1], : size[0]]
    return Image.fromarray(np.ascontiguousarray(large))
