"""The few functions of torchvision that transformers' image processors call, for machines without the package.

    import make_believe_torchvision     # ahead of transformers, in a process of its own

They place pixels as torchvision does: the kernel of resizing is torch's own, which torchvision calls, too.
"""

from __future__ import annotations

import enum
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F


class InterpolationMode(enum.Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def resize(image: torch.Tensor, size: Any, interpolation: Any = InterpolationMode.BILINEAR, antialias: bool = True):
    lead, dtype = image.shape[:-3], image.dtype
    batch = image.reshape(-1, *image.shape[-3:]).float()
    mode = interpolation.value if isinstance(interpolation, InterpolationMode) else "bicubic"
    smooth = mode in ("bilinear", "bicubic", "lanczos")
    made = F.interpolate(
        batch, tuple(size), mode=mode, antialias=antialias and smooth, align_corners=False if smooth else None
    )
    if not dtype.is_floating_point:
        made = made.round().clamp(0, 255).to(dtype)
    return made.reshape(*lead, *made.shape[-3:])


def pad(image: torch.Tensor, padding: Any, fill: Any = 0, padding_mode: str = "constant") -> torch.Tensor:
    padding = [padding] * 4 if isinstance(padding, int) else list(padding)
    left, top, right, bottom = padding if len(padding) == 4 else padding * 2
    fills = fill if isinstance(fill, (list, tuple)) else [fill] * image.shape[-3]
    parts = [
        F.pad(image[..., i : i + 1, :, :], (left, right, top, bottom), value=float(f)) for i, f in enumerate(fills)
    ]
    return torch.cat(parts, -3)


def crop(image: torch.Tensor, top: int, left: int, height: int, width: int) -> torch.Tensor:
    return image[..., top : top + height, left : left + width]


def center_crop(image: torch.Tensor, size: Any) -> torch.Tensor:
    (height, width), (high, wide) = image.shape[-2:], size
    return crop(image, round((height - high) / 2), round((width - wide) / 2), high, wide)


def normalize(image: torch.Tensor, mean: Any, std: Any, inplace: bool = False) -> torch.Tensor:
    mean, std = (torch.as_tensor(v, dtype=image.dtype).reshape(-1, 1, 1) for v in (mean, std))
    return (image - mean) / std


def to_dtype(image: torch.Tensor, dtype: torch.dtype, scale: bool = False) -> torch.Tensor:
    if scale and dtype.is_floating_point and not image.is_floating_point():
        return image.to(dtype) / 255
    if scale and image.is_floating_point() and not dtype.is_floating_point:
        return (image * 255).round().to(dtype)
    return image.to(dtype)


def grayscale_to_rgb(image: torch.Tensor) -> torch.Tensor:
    return image.expand(*image.shape[:-3], 3, *image.shape[-2:]) if image.shape[-3] == 1 else image


def pil_to_tensor(picture: Any) -> torch.Tensor:
    values = np.asarray(picture)
    return torch.from_numpy(values.copy()).movedim(-1, 0) if values.ndim == 3 else torch.from_numpy(values.copy())[None]


def install() -> None:
    """Make ``import torchvision`` find these functions."""
    if "transformers" in sys.modules:
        raise RuntimeError("transformers was imported before, and has asked for torchvision already")
    names = ("", ".transforms", ".transforms.functional", ".transforms.v2", ".transforms.v2.functional", ".io", ".ops")
    for name in names:
        module = ModuleType(f"torchvision{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None, is_package=True)
        module.__path__ = []  # type: ignore[attr-defined]
        module.__file__ = __file__
        sys.modules[module.__name__] = module
        if name:
            parent, _, last = module.__name__.rpartition(".")
            setattr(sys.modules[parent], last, module)
    sys.modules["torchvision"].__version__ = "0.27"  # type: ignore[attr-defined]
    for name in (".transforms", ".transforms.functional", ".transforms.v2", ".transforms.v2.functional"):
        vars(sys.modules[f"torchvision{name}"]).update(FUNCTIONS)


FUNCTIONS = {
    f.__name__: f
    for f in (
        InterpolationMode, resize, pad, crop, center_crop, normalize, to_dtype, grayscale_to_rgb, pil_to_tensor,
    )
}  # fmt: skip
install()
