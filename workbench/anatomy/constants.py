"""Constants between recorded tensors: fitted, told apart from rounding, and matched with numbers of the config."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench.errors import Refused


def unit_roundoff(*dtypes: torch.dtype) -> float:
    """The largest relative error of one rounding to any of these floating-point types."""
    return max(torch.finfo(dtype).eps for dtype in dtypes) / 2


def row_share(difference: Tensor, of: Tensor) -> float:
    """The largest |difference| of any row, as a share of the largest |number| of that row in ``of``; [rows, columns].

    Row by row: one row far larger than the others (a massive activation) would hide what is wrong with them.
    """
    largest = of.abs().amax(-1).clamp_min(1e-30)
    return float((difference.abs().amax(-1) / largest).max())


def ratio(x: Tensor, y: Tensor, numbers: list[float] | None = None, u: float | None = None) -> float | None:
    """The constant s with y = s x, or None when there is none; ``numbers`` as in :func:`constants`.

    Fitted to rows of one size, then asked of every element: a product and a change of type are each off by at most
    ``u`` (default: of the types of x and y) of what they give, so 6 u |s x| is more than rounding can do.
    """
    if x.shape != y.shape:
        if x.numel() != y.numel() or x.shape[-1] != y.shape[-1]:
            return None
        y = y.reshape(x.shape)
    u = unit_roundoff(x.dtype, y.dtype) if u is None else u
    least = max(torch.finfo(t.dtype).tiny * torch.finfo(t.dtype).eps for t in (x, y))
    x, y = x.double(), y.double()
    if torch.equal(x, y):
        return 1.0
    weight = 1 / (x * x).sum(-1, keepdim=True).clamp_min(1e-60)
    norm = (weight * x * x).sum()
    if not torch.isfinite(norm) or norm == 0:
        return None
    fitted = float((weight * x * y).sum() / norm)
    for s in constants(fitted, numbers or [], 6 * u):
        if s and bool(((y - s * x).abs() <= 6 * u * (s * x).abs() + least).all()):
            return s
    return None


def constants(fitted: float, numbers: list[float], error: float) -> list[float]:
    """What a fitted constant may be exactly, likeliest first: 1, a config value, its inverse or root, a ratio of two.

    ``error``: how far, as a share, the fit may be off.  Ratios of two are so many that one is always near, so they
    count only within 1e-5.  The fitted value itself comes last.
    """
    ratios = [a / b for a in numbers for b in numbers] if len(numbers) < 200 else []
    found = []
    for exact, near in (
        ([1.0], max(error, 1e-5)),
        (numbers, max(error, 1e-5)),
        ([*(1 / n for n in numbers), *(math.sqrt(abs(n)) for n in numbers)], max(error, 1e-5)),
        (ratios, 1e-5),
    ):
        nearest = min(exact, key=lambda e: abs(e - fitted), default=math.inf)
        if abs(nearest - fitted) <= near * abs(fitted):
            found.append(nearest)
    return [*found, fitted]


def fit_output(
    raw: Tensor, own: Tensor, numbers: list[float], u: float
) -> tuple[float, float | None, tuple[int, ...]]:
    """Scale, softcap and masked columns with  own = softcap * tanh(scale * raw / softcap).

    Args: ``raw``, ``own`` [positions, vocabulary]; ``u``: the unit roundoff of the model's type.  A softcap is two
    products and a tanh; since x / cosh(x)^2 <= tanh(x), a share of u on the way in is at most that share of the
    result, and 16 u |own| leaves room for a tanh that is off by some units in the last place.

    Raises Refused when no such constants exist.
    """
    raw, own = raw.double(), own.double()
    floor = own <= torch.finfo(torch.float32).min / 2
    floor |= own <= torch.finfo(torch.bfloat16).min / 2
    masked = floor.all(0)
    if masked.any():
        raw, own = raw[:, ~masked], own[:, ~masked]
    columns = tuple(masked.nonzero()[:, 0].tolist())
    s = ratio(raw, own, numbers, u)
    if s is not None:
        return s, None, columns
    found = []
    for cap in {n for n in numbers if n > 0 and n >= float(own.abs().max()) * (1 - u)}:
        inner = cap * torch.atanh((own / cap).clamp(-1 + 1e-12, 1 - 1e-12))
        # Near the cap atanh loses digits, so the factor is fitted where tanh is still steep.
        steep = own.abs() < 0.8 * cap
        if steep.sum() < 8:
            continue
        fitted = float((raw[steep] * inner[steep]).sum() / (raw[steep] ** 2).sum())
        for s in constants(fitted, numbers, 16 * u):
            off = (cap * torch.tanh(s * raw / cap) - own).abs()
            if bool((off <= 16 * u * own.abs() + 1e-30).all()):
                found.append((float((off * off).mean()), s, cap))
                break
    if found:
        # In half precision a neighbouring number of the config may pass, too: the nearest is the one.
        _, s, cap = min(found)
        return s, cap, columns
    raise Refused(
        "The logits are not a constant scale or softcap of the unembedding's output. "
        "Something else happens behind the unembedding that a lens would silently leave out."
    )
