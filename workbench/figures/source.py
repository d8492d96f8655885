"""What every view needs from a reading's dataset: its depth axis, its real positions, the text of its tokens.

Needs numpy and xarray only, so that widgets and pages can stand on it, too.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import tokens
from workbench.errors import InputError
from workbench.figures import colours
from workbench.variables import called, completed, controls_of, title

if TYPE_CHECKING:
    import xarray as xr

DEPTHS = ("layer", "block")


class Source:
    """One dataset, asked in the terms that a chart or a widget thinks in.

    data       the dataset; variables that do not say what they are have attributes after their bare names
               (:func:`workbench.variables.completed`)
    depth      "layer" (residual stream, 0..L) or "block" (inside a block); None when the data has neither
    depths     int array [depth]: the layers or blocks that were read
    kind       of prompts with pictures, which positions there are: "text", "image"; None: all
    """

    def __init__(self, data: xr.Dataset, kind: str | None = None):
        self.data = data = completed(data)
        self.kind = kind
        self.depth: str | None = next((d for d in DEPTHS if d in data.dims), None)
        self.depths: np.ndarray = (
            np.asarray(
                data[self.depth].values if self.depth in data.coords else range(data.sizes[self.depth])
            )
            if self.depth
            else np.zeros(0, dtype=int)
        )
        self._texts: dict[int, str] = {}
        if "vocab_token" in data:
            ids = data["vocab"].values if "vocab" in data.coords else range(data.sizes["vocab"])
            self._texts = {int(i): str(t) for i, t in zip(ids, data["vocab_token"].values, strict=True)}

    @property
    def reader(self) -> str:
        return str(self.data.attrs.get("reader", "reading"))

    @property
    def model(self) -> str:
        """The model's name; of a model from a local folder, the folder's own name."""
        return short_name(str(self.data.attrs.get("model", "")))

    @property
    def depth_label(self) -> str:
        at = str(self.data.attrs.get("at", "resid"))
        return "layer" if self.depth != "block" else f"block ({at})"

    def has(self, name: str) -> bool:
        return name in self.data.data_vars

    def about(self, name: str) -> dict[str, Any]:
        """The attributes of a variable."""
        return self.data[name].attrs

    def called(self, name: str, short: bool = False) -> str:
        return called(self.data[name], short)

    def title(self, name: str, short: bool = False) -> str:
        """The name with its units."""
        return title(self.data[name], short)

    def scale(self, name: str) -> str:
        """The scale of its colours."""
        return colours.scale(self.data[name].attrs)

    def controls(self, name: str, role: str) -> list[str]:
        """The variables that are its nulls, floors, ..., for the kind of positions that there are."""
        known = controls_of(self.data, name, [role]).get(role, [])
        return [one for one in known if self.kind is None or self.holds_for(one, self.kind)]

    def holds_for(self, control: str, kind: str) -> bool:
        """Whether a control is one for positions of a kind: its attribute ``kind`` says for which it was made."""
        return self.data[control].attrs.get("kind", kind) == kind

    def floor(self, value: str, kind: str) -> np.ndarray | None:
        """[depth] the highest of a value's floors for positions of a kind, NaN where there is none; None: no floors."""
        names = (n for n in self.controls(value, "floor") if self.data[n].dims == (self.depth,))
        floors = [self.data[n].values.astype(float) for n in names if self.holds_for(n, kind)]
        if not floors:
            return None
        return np.where(np.isnan(floors).all(0), np.nan, np.max(np.nan_to_num(floors, nan=-np.inf), 0))

    @property
    def score(self) -> str | None:
        """The value that the ranks are in order of: what the token ids are labels of, or the first over ranks."""
        ranked = [name for name in self.values() if "rank" in self.data[name].dims]
        of = self.about("token_id").get("of") if self.has("token_id") else None
        return str(of) if of in ranked else next(iter(ranked), None)

    @property
    def followed(self) -> str | None:
        """The value of the targets: what the target ids are labels of, or the first with a null or a target."""
        of = self.about("target_id").get("of") if self.has("target_id") else None
        known = self.values()
        if of in known:
            return str(of)
        compared = [n for n in known if self.controls(n, "null")]
        return next((n for n in [*compared, *known] if n in compared or "target" in self.data[n].dims), None)

    def text(self, token: int) -> str:
        """Raw text of a token id; "" for -1 (no token); "#123" where the reading holds no text for it."""
        token = int(token)
        return "" if token < 0 else self._texts.get(token, f"#{token}")

    def prompt(self, prompt: int) -> int:
        """A prompt's index, negative ones counted from the end."""
        count = self.data.sizes.get("prompt", 1)
        if not isinstance(prompt, int | np.integer) or not -count <= prompt < count:
            raise InputError(
                f"prompt={prompt!r} was asked for, but the reading holds {count} prompt(s). "
                f"Choose from {-count} to {count - 1}."
            )
        if "position" in self.data.dims and not self.positions(prompt % count).size:
            raise InputError(
                f"Prompt {prompt} has no position in this reading: it ends before those that were selected. Choose "
                "another prompt, or read the last token of each with positions=\"last\"."
            )
        return prompt % count

    def positions(self, prompt: int) -> np.ndarray:
        """Indices along `position` that hold a token of this prompt; padding is left out."""
        if self.has("input_id"):
            real = self.data["input_id"].values[prompt] >= 0
        elif self.has("input_token"):
            real = self.data["input_token"].values[prompt].astype(str) != ""
        else:
            real = np.ones(self.data.sizes.get("position", 0), bool)
        if self.kind is not None and "kind" in self.data.coords:
            real = real & (self.data["kind"].transpose("prompt", "position").values[prompt] == self.kind)
        return np.flatnonzero(real)

    def position(self, prompt: int, position: int) -> int:
        """The index along `position` of the n-th real token; negative counts from the prompt's end."""
        real = self.positions(prompt)
        if not -len(real) <= position < len(real):
            raise InputError(
                f"position={position} was asked for, but prompt {prompt} has {len(real)} positions in this "
                f"reading. Choose from {-len(real)} to {len(real) - 1}."
            )
        return int(real[position])

    def places(self, prompt: int) -> np.ndarray:
        """Where in the prompt each real position stands, counted from its first token.

        The coordinate ``position`` says it only where it means the same in every prompt: of prompts that were read at
        their last position it is 0, the first of the selection.
        """
        real = self.positions(prompt)
        if self.has("input_position"):
            return self.data["input_position"].values[prompt][real]
        return self.data["position"].values[real] if "position" in self.data.coords else real

    def inputs(self, prompt: int) -> list[str]:
        """Raw text of the prompt's own tokens, one for each real position."""
        real = self.positions(prompt)
        if self.has("input_token"):
            return [str(t) for t in self.data["input_token"].values[prompt][real]]
        if self.has("input_id"):
            return [self.text(i) for i in self.data["input_id"].values[prompt][real]]
        return [f"#{i}" for i in real]

    def prompt_text(self, prompt: int) -> str:
        if self.has("prompt_text"):
            return str(self.data["prompt_text"].values[prompt])
        return "".join(self.inputs(prompt))

    def targets(self, prompt: int, position: int) -> list[str]:
        """Raw text of each target that was asked for, at one place."""
        if "target" in self.data.coords and not self.own_targets:
            return [str(t) for t in self.data["target"].values]
        if not self.has("target_id"):
            return ["target"]
        ids = self.data["target_id"]
        for name, at in (("prompt", prompt), ("position", position)):
            ids = ids.isel({name: at}) if name in ids.dims else ids
        return [self.text(i) for i in np.atleast_1d(ids.values)]

    @property
    def own_targets(self) -> bool:
        """Whether every prompt has targets of its own, so that their names are not a coordinate."""
        return self.has("target_id") and set(self.data["target_id"].dims) == {"prompt", "target"}

    def aim(self, target: int, prompt: int) -> str:
        """What a title calls a target, and which of how many it is."""
        names = self.targets(prompt, 0)
        if len(names) < 2:
            return "target" if "target" not in self.data.coords else tokens.visible(names[0])
        return f"{tokens.visible(names[target])} (target {target + 1} of {len(names)})"

    def target(self, target: int | str | None, prompt: int) -> int:
        """The index of a prompt's target, given by text or number; the first by default."""
        names = self.targets(prompt, 0) if "target" in self.data.coords else ["target"]
        if target is None:
            return 0
        if isinstance(target, str) and target in names:
            return names.index(target)
        if isinstance(target, int) and -len(names) <= target < len(names):
            return target % len(names)
        where = f"followed in prompt {prompt}. It has" if self.own_targets else "in this reading. It holds"
        raise InputError(f"The target {target!r} is not {where}: {names}.")

    def grid(self, name: str, prompt: int, target: int | str | None = None) -> np.ndarray:
        """One variable as [depth, real position], float, NaN for none; the top rank, one target."""
        found = self.data[name]
        picks: dict[str, Any] = {"prompt": prompt, "rank": 0}
        if "target" in found.dims:
            picks["target"] = self.target(target, prompt)
        for dim, at in picks.items():
            found = found.isel({dim: at}) if dim in found.dims else found
        if found.dims == (self.depth,):  # a control of a whole layer is the same at every position
            found = found.expand_dims(position=self.data.sizes["position"])
        if set(found.dims) != {self.depth, "position"}:
            raise InputError(
                f"{name!r} has the dimensions {tuple(self.data[name].dims)}; a grid needs {self.depth} and "
                f"position. These have them: {self.grids()}."
            )
        values = found.transpose(self.depth, "position").values[:, self.positions(prompt)]
        # Whole numbers have no NaN: -1 is none.
        return np.where(values < 0, np.nan, values.astype(float)) if values.dtype.kind == "i" else values.astype(float)

    def sinks(self, prompt: int) -> np.ndarray:
        """[depth, real position] whether a state is an attention sink; all False where the reading does not tell."""
        real = self.positions(prompt)
        if not self.has("sink"):
            return np.zeros((len(self.depths), len(real)), bool)
        found = self.data["sink"].isel(prompt=prompt)
        if self.depth not in found.dims:  # of a reading whose rows are parts of the model
            found = found.any([d for d in found.dims if d != "position"])
            return np.broadcast_to(found.values[real].astype(bool), (len(self.depths), len(real)))
        return found.transpose(self.depth, "position").values[:, real].astype(bool)

    @property
    def sink_said(self) -> str:
        """What makes a state a sink."""
        known = self.data["sink"].attrs.get("threshold") if self.has("sink") else None
        return "sink" + (f": norm beyond {float(known):g} x the layer's median" if known is not None else "")

    def sinks_left_out(self) -> str:
        """What a caption says of a mean over positions; "" where no position is a sink."""
        count = sum(int(self.sinks(p).any(0).sum()) for p in range(self.data.sizes.get("prompt", 1)))
        return f"{count} sink position{'s' * (count > 1)} left out" if count else ""

    def grids(self) -> list[str]:
        """Names of the numbers that run over depth and position: values, nulls, p-values."""
        return [
            str(name)
            for name, v in self.data.data_vars.items()
            if {"prompt", self.depth, "position"} <= set(v.dims) <= {"prompt", self.depth, "position", "rank", "target"}
            and v.dtype.kind in "fiu"
            and v.attrs["role"] not in ("label", "mask")
        ]

    def values(self) -> list[str]:
        """Those of them that were measured, and are no control of another."""
        return [name for name in self.grids() if self.data[name].attrs["role"] == "value"]

    def by_component(self) -> list[str]:
        """Values over positions and parts of the model, such as contributions to a logit."""
        return [
            str(name)
            for name, v in self.data.data_vars.items()
            if {"prompt", "position", "component"} <= set(v.dims) and v.dtype.kind == "f" and v.attrs["role"] == "value"
        ]


def short_name(model: str) -> str:
    return PurePath(model).name if PurePath(model).is_absolute() else model
