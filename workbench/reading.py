"""``Reading``: what a reader found, as labelled arrays with provenance; one portable netCDF4 file.

Opens, draws and tabulates on a machine without torch.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.errors import InputError, ReadingError
from workbench.files import atomic_write
from workbench.store import Folder, Kind

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "latent-workbench reading"
VERSION = 1


class Provenance(list):
    """Where a reading comes from: a list of steps, each a dict with its name under "step".

    The first is the pass of a model (or a file of another program), each further one a function that made a result of
    the one before.  A text as the index is looked up in the last step that has it: ``provenance["model"]["name"]``.
    """

    def __init__(self, steps: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None = None) -> None:
        given: Any = [steps] if isinstance(steps, Mapping) else steps or []
        super().__init__({"step": "read", **step} for step in given if step)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        for step in reversed(self):
            if key in step:
                return step[key]
        raise KeyError(f"No step of this provenance has {key!r}: {', '.join(str(s['step']) for s in self) or 'none'}.")

    def __contains__(self, key: Any) -> bool:
        return any(key in step for step in self) if isinstance(key, str) else super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default


class Reading:
    """Labelled arrays (``.data``, an :class:`xarray.Dataset`) and where they came from (``.provenance``).

    What every verb of the workbench returns.  ``reading["entropy"]`` is ``reading.data["entropy"]``; each variable's
    attributes say what it is (:mod:`workbench.variables`).
    """

    def __init__(
        self, data: xr.Dataset, provenance: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None = None
    ) -> None:
        self.data = data
        self.provenance = Provenance(provenance)

    def __getitem__(self, name: str) -> xr.DataArray:
        return self.data[name]

    def __contains__(self, name: object) -> bool:
        return name in self.data

    def __getattr__(self, name: str) -> Any:
        """A variable or label by its name, ``reading.similarity``, and how long dimensions are, ``reading.sizes``."""
        if not name.startswith("_") and "data" in self.__dict__:
            if name in self.data.variables:
                return self.data[name]
            if name in ("sizes", "dims", "attrs", "coords", "data_vars"):
                return getattr(self.data, name)
        raise AttributeError(f"{type(self).__name__} has no {name!r}; .data is its xarray.Dataset.")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {size}" for name, size in self.data.sizes.items() if name != "vocab")
        names = ", ".join(str(v) for v in self.data.data_vars)
        model = (self.provenance.get("model") or {}).get("name") or self.data.attrs.get("model", "?")
        attrs = self.data.attrs
        what = attrs.get("measure") or attrs.get("reader") or attrs.get("instrument", "?")
        return (
            f"<Reading {what} of {model} ({sizes})>\n  {names}\n"
            "  .data .figure() .explore() .frame() .isel() .save(path) .to_html(path)"
        )

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        bundle = {"text/plain": repr(self)}
        try:
            from workbench.widgets.dispatch import static_html

            bundle["text/html"] = static_html(self)
        except (ValueError, ImportError):  # nothing that an explorer shows: the figure, or xarray's own view
            bundle["text/html"] = self._picture() or self.data._repr_html_()
        if sum(map(len, bundle.values())) > 300_000:  # more than one output may leave in a notebook
            del bundle["text/html"]
        return bundle

    def _repr_html_(self) -> str | None:  # for viewers that ask for it alone
        return self._repr_mimebundle_().get("text/html")

    def _picture(self) -> str | None:
        """The reading's first figure as HTML that needs no kernel; None where there is none."""
        try:
            shown, about = self.figure()._repr_mimebundle_()
        except Exception:  # no chart, or one that fails: to be shown must not fail
            return None
        alt = html.escape(about["image/png"]["alt"])
        return (
            f'<img alt="{alt}" style="max-width:100%" src="data:image/png;base64,{shown["image/png"]}">'
            f"<pre>{html.escape(repr(self))}</pre>"
        )

    def isel(self, **places: Any) -> Reading:
        """The part at some places: ``reading.isel(prompt=0, position=slice(-8, None))``, as xarray's ``isel``.

        A single number keeps its dimension, so that the part is a reading, too: drawn, explored and saved like the
        whole, with the same provenance.  Numbers that were computed over the whole (floors, nulls) stay what they were.

        Positions count in each prompt by itself, so that -1 is the last token of every one, however long the others are
        (``.data.isel`` is xarray's own and counts the padding).  Where prompts differ in length the positions of the
        part are then numbered anew, and ``input_position`` says where each stands in its prompt; a prompt that has
        fewer than were asked for has nothing (NaN, -1) in the rest.

        Raises InputError for a dimension or a place that the reading does not have.
        """
        wanted = places.get("position")
        ragged = wanted is not None and "position" in self.data.dims and not isinstance(wanted, xr.DataArray)
        if not ragged or "input_id" not in self.data or self.data["input_id"].dims != ("prompt", "position"):
            return self._part(self.data.isel, places)
        rest = {name: place for name, place in places.items() if name != "position"}
        part = self._part(self.data.isel, rest) if rest else self
        real = part.data["input_id"].values >= 0
        chosen = _own_places(real, wanted)
        if len(chosen) and all(np.array_equal(own, chosen[0]) for own in chosen):
            return part._part(part.data.isel, {"position": chosen[0]})
        return Reading(_gathered(part.data, chosen), self.provenance)

    def sel(self, **labels: Any) -> Reading:
        """The part under some labels, as xarray's ``sel``: ``reading.sel(layer=[0, 6, 12])``.  Otherwise as isel.

        Labels of positions count from the first token; from the end count those of :meth:`isel`.
        """
        place = labels.get("position")
        ends = [place.start, place.stop] if isinstance(place, slice) else [] if place is None else np.ravel(place)
        if any(isinstance(x, int | np.integer) and x < 0 for x in ends):
            raise InputError(
                f"position={place!r}: no position has a negative label, so nothing would be counted from the end. Use "
                "isel(position=...), which counts from the end of each prompt."
            )
        return self._part(self.data.sel, labels)

    def _part(self, select: Callable[..., xr.Dataset], asked: dict[str, Any]) -> Reading:
        if unknown := [name for name in asked if name not in self.data.dims]:
            known = ", ".join(f"{name} ({size})" for name, size in self.data.sizes.items())
            raise InputError(f"This reading has no dimension {unknown[0]!r}. It has: {known}.")
        kept = {name: [x] if np.ndim(x) == 0 and not isinstance(x, slice) else x for name, x in asked.items()}
        try:
            return Reading(_own_pictures(self.data, select, kept), self.provenance)
        except (KeyError, IndexError) as error:
            held = "; ".join(f"{name}: {_brief(self.data[name].values)}" for name in asked)
            raise InputError(f"{error.args[0] if error.args else error}. The reading holds {held}.") from None

    def figure(self, kind: str | None = None, **options: Any) -> Any:
        """A plotly figure, which ``.save("x.pdf", width="column", venue="icml")`` and ``.matplotlib()`` set for paper.

        kind      which chart; by default the first that fits.  Of lenses: "heatmap" (layers x positions of a prompt),
                  "trajectory" (one position through the layers), "curves" (means over prompts), "floors" (beside what
                  chance reaches); of other readers :func:`workbench.figures.charts.charts` lists them.
        options   of that chart: ``prompt=``, ``value=``, ``position=``, ...; ``help(workbench.figures.heatmap)`` tells
                  those of heatmap.

        A part of a reading is drawn as ``reading.isel(position=slice(-8, None)).figure()``.  Raises InputError for a
        chart that does not fit, and for options that it does not have.
        """
        from workbench.figures import chart

        return chart(self, kind, **options)

    @property
    def plot(self) -> Charts:
        """The charts as xarray has them: ``reading.plot()``, ``reading.plot.curves(value="entropy", ax=ax)``."""
        return Charts(self)

    def explore(self, kind: str | None = None, **options: Any) -> Any:
        """The live widget for a notebook: ``kind`` as in :func:`workbench.widgets.views`; the first that fits."""
        from workbench.widgets.dispatch import explore

        return explore(self, kind, **options)

    def to_html(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """The same explorer (``kind=``) as one offline page."""
        from workbench.widgets.dispatch import to_html

        return to_html(self, path, **options)

    def frame(self, dims: str | Iterable[str] | None = None) -> pd.DataFrame:
        """A long table: one row for each place that has a value, with the token texts beside their ids.

        ``dims``: the variables over just these dimensions instead (:func:`tidy`), as where a reading has no places.

        Raises InputError where no variable is over these dimensions.
        """
        main = [n for n, v in self.data.data_vars.items() if {"prompt", "position"} <= set(v.dims)]
        if dims is not None or not main:
            return tidy(self.data, dims)
        depth = [n for n in main if set(self.data[n].dims) & {"layer", "block", "component", "expert"}]
        keep = [n for n in main if self.data[n].ndim == 2 or n in depth]
        if "target_id" in self.data and set(self.data["target_id"].dims) == {"prompt", "target"}:
            keep.append("target_id")  # where prompts have targets of their own, `target` is only a number
        table: Any = self.data[keep].to_dataframe().reset_index()
        if "input_id" in table:
            table = table[table["input_id"] >= 0]
        if "token_id" in table and "vocab_token" in self.data:
            texts = dict(zip(self.data["vocab"].values.tolist(), self.data["vocab_token"].values, strict=True))
            table = table[table["token_id"] >= 0]
            if "token" not in table:
                table.insert(table.columns.get_loc("token_id") + 1, "token", table["token_id"].map(texts))
        return table.reset_index(drop=True)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one netCDF4 file; complete under its name or not there at all.

        Raises ReadingError when it cannot be written (a full disk, no such folder); the reading is untouched.
        """
        path = Path(path)
        stored = _texts_once(_storable(self.data))
        stored.attrs = {
            **stored.attrs,
            "workbench_format": FORMAT,
            "workbench_version": VERSION,
            "provenance": json.dumps(self.provenance, default=str),
            "digest": _digest(stored),
        }
        # Checksums (fletcher32) say where a file is damaged; the digest, that no piece of it is missing.
        encoding = {
            str(name): {"zlib": True, "complevel": 3, "fletcher32": True, "_FillValue": None}
            for name, v in stored.variables.items()
            if v.dtype.kind in "fiub" and v.ndim and v.size
        }
        # Else one is made up, and is an attribute of what is opened again.
        encoding |= {str(name): {"_FillValue": None} for name, v in stored.variables.items() if not v.ndim}
        atomic_write(path, lambda name: stored.to_netcdf(name, engine="h5netcdf", encoding=encoding))
        return path


def derived(step: str, data: xr.Dataset, *sources: Reading, **settings: Any) -> Reading:
    """A result that was computed from readings, with their provenance and one more step.

    Parameters
    ----------
    step
        Name of the function, as a user calls it ("routing.divergence").
    data
        The result.  Its attribute ``measure`` becomes the last part of ``step``, ``model`` that of the sources.
    sources
        What it was computed from; their digests are kept (a pass whose readings were not kept has none).
    settings
        What the function was asked for.

    Returns
    -------
    Reading
    """
    steps: list[Any] = []
    for source in sources:
        steps += [own for own in source.provenance if own not in steps]
    known = {"measure": step.rpartition(".")[2]}
    for source in sources:
        known |= {k: source.data.attrs[k] for k in ("model", "n_layers") if k in source.data.attrs}
    data = data.assign_attrs({**known, **data.attrs})
    of = [_digest(_texts_once(_storable(source.data))) for source in sources if source.data.variables]
    return Reading(data, [*steps, {"step": step, "settings": settings, "of": of}])


def _own_places(real: np.ndarray, wanted: Any) -> list[np.ndarray]:
    """For each prompt, which slots of the position axis are meant; -1: one that it does not have.

    ``real`` [prompt, position]: where a prompt has a token.  Numbers from the end count back from its last one; those
    from the beginning are slots of the axis, whether this prompt has a token there or not.
    """
    size, found = real.shape[1], []
    asked = np.atleast_1d(np.asarray(wanted)) if not isinstance(wanted, slice) else None
    if asked is not None and asked.dtype == bool:
        if len(asked) != size:
            raise InputError(f"position has {len(asked)} truth values, and the reading has {size} positions.")
        asked = np.flatnonzero(asked)
    if asked is not None and asked.size and not (asked.dtype.kind in "iu" and np.isin(asked, range(-size, size)).all()):
        raise InputError(f"There is no position={wanted!r}. The reading holds position: 0 to {size - 1}.")
    for own in real:
        there = np.flatnonzero(own)
        if asked is None:
            found.append(there[wanted])
        else:
            back = len(there) + asked
            last = there[np.clip(back, 0, max(0, len(there) - 1))] if len(there) else np.full(len(asked), -1)
            found.append(np.where(asked >= 0, asked, np.where(back >= 0, last, -1)))
    return found


def _own_pictures(data: xr.Dataset, select: Callable[..., xr.Dataset], kept: dict[str, Any]) -> xr.Dataset:
    """A part of a dataset; where prompts are chosen, with their pictures alone, whose prompts are numbered anew."""
    part = select(kept)
    if "prompt" not in kept or "picture" in kept or "picture_prompt" not in data:
        return part
    known = {"prompt": data["prompt"]} if "prompt" in data.coords else {}
    numbers = xr.DataArray(np.arange(data.sizes["prompt"]), known, "prompt")
    chosen = getattr(numbers, select.__name__)(prompt=kept["prompt"]).values
    own = [np.flatnonzero(data["picture_prompt"].values == prompt) for prompt in chosen]
    part = part.isel(picture=np.concatenate([*own, np.zeros(0, int)]).astype(int))
    places = np.repeat(np.arange(len(own)), [len(one) for one in own])
    part["picture_prompt"] = part["picture_prompt"].copy(data=places.astype(data["picture_prompt"].dtype))
    return part


def _gathered(data: xr.Dataset, chosen: list[np.ndarray]) -> xr.Dataset:
    """A dataset with slots of its own for each prompt on the position axis, which is numbered anew."""
    index = np.full((len(chosen), max(map(len, chosen), default=0)), -1)
    for i, own in enumerate(chosen):
        index[i, : len(own)] = own
    alone = [str(n) for n, v in data.variables.items() if "position" in v.dims and "prompt" not in v.dims]
    if lost := [name for name in alone if name != "position"]:
        raise InputError(
            f"{lost[0]} is by position and not by prompt, and the prompts differ in length: the places asked for are "
            "other positions in each. Choose one prompt, isel(prompt=...), or use .data.isel."
        )
    # Datasets do not give places to one by one: numpy does, and what no prompt has is filled as readers fill it.
    places = xr.DataArray(index.clip(0), dims=("prompt", "position"))
    prompts = xr.DataArray(np.arange(len(chosen)), dims="prompt")
    there = xr.DataArray(index >= 0, dims=("prompt", "position"))
    moved: dict[str, Any] = {}
    for name, variable in data.variables.items():
        if name == "position" or "position" not in variable.dims:
            continue
        own = xr.DataArray(variable.values, dims=variable.dims).isel(prompt=prompts, position=places)
        fill = {"f": np.nan, "c": np.nan, "i": -1, "b": False, "u": 0}.get(variable.dtype.kind, "")
        own = own.where(there, np.array(fill, own.dtype if variable.dtype.kind in "fciub" else object))
        moved[str(name)] = own.transpose(*variable.dims).variable
        moved[str(name)].attrs = variable.attrs
    data = data.drop_dims("position").assign_coords(position=np.arange(index.shape[1]))
    return data.assign(moved)


def _brief(values: np.ndarray) -> str:
    shown = [str(x) for x in values]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:6], "...", *shown[-2:]])


def tidy(data: xr.Dataset, dims: str | Iterable[str] | None = None) -> pd.DataFrame:
    """A long table of the variables over just these dimensions: a row for each of their places, a column for each
    dimension and variable.

    xarray's own ``to_dataframe`` repeats what is by block alone for every pair of labels, say.

    Args:
        data: a dataset: a reading's, or the table of a measure.
        dims: one dimension or several, in the order of the rows; () for what is one number.  None: those of most
            variables.

    Raises InputError where no variable is over these dimensions.
    """
    over: dict[frozenset[str], list[Any]] = {}
    for name, variable in data.data_vars.items():
        over.setdefault(frozenset(map(str, variable.dims)), []).append(name)
    if not over:
        raise InputError("The table holds no variables, so it has no rows.")
    if dims is None:
        found = max(over, key=lambda some: (len(over[some]), len(some)))
        wanted = [str(dim) for dim in data[over[found][0]].dims]
    else:
        wanted = [dims] if isinstance(dims, str) else list(dims)
    names = over.get(frozenset(wanted))
    if names is None:
        known = "; ".join(f"({', '.join(map(str, data[own[0]].dims))}): {len(own)}" for own in over.values())
        raise InputError(
            f"No variable is over ({', '.join(wanted)}) alone, so there are no such rows. Variables over each set of "
            f"dimensions: {known}. Give one of these as dims=."
        )
    if not wanted:
        import pandas

        return pandas.DataFrame([{str(name): data[name].item() for name in names}])
    table: Any = data[names].to_dataframe(dim_order=wanted)
    return table.reset_index()


def storable(text: str) -> str:
    """A text as files can hold it: NUL as its picture, halves of surrogate pairs as question marks."""
    return text.replace("\0", "\u2400").encode("utf-8", "replace").decode("utf-8")


def _storable(data: xr.Dataset) -> xr.Dataset:
    """The same data, its texts as files can hold them; labels of dimensions are texts, too."""
    changed = {}
    for name, variable in data.variables.items():
        if variable.dtype.kind in "OU":
            texts = [storable(x) if isinstance(x, str) else x for x in variable.values.ravel().tolist()]
            if texts != variable.values.ravel().tolist():
                values = np.array(texts, object).reshape(variable.shape)
                changed[name] = (variable.dims, values, variable.attrs)
    data = data.assign_coords({n: v for n, v in changed.items() if n in data.coords})
    data = data.assign({n: v for n, v in changed.items() if n not in data.coords})
    for owner in (data, *data.variables.values()):
        owner.attrs = {k: storable(v) if isinstance(v, str) else v for k, v in owner.attrs.items()}
    return data


def _digest(data: xr.Dataset) -> str:
    """16 hex digits over names, shapes and values; the same before a file is written and after it is read."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(map(str, data.variables)):
        variable = data.variables[name]
        values = np.asarray(variable.values)
        digest.update(f"{name}{variable.dims}{values.shape}".encode())
        if values.dtype.kind in "fiub":
            digest.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())
        else:
            digest.update("\0".join(map(str, values.ravel().tolist())).encode("utf-8", "replace"))
    return digest.hexdigest()


def _texts_once(data: xr.Dataset) -> xr.Dataset:
    """Each different text stored once: a variable of texts over many places becomes numbers and a table."""
    out = data.copy()
    for name, variable in data.data_vars.items():
        if variable.dtype.kind == "O" and variable.ndim > 2:
            texts, codes = np.unique(variable.values.astype(object), return_inverse=True)
            about = {**variable.attrs, "texts": f"{name}_texts"}
            out[name] = (variable.dims, codes.reshape(variable.shape).astype(np.int32), about)
            out[f"{name}_texts"] = ((f"{name}_text",), texts)
    return out


def _texts_in_place(data: xr.Dataset) -> xr.Dataset:
    for name in [n for n, v in data.data_vars.items() if "texts" in v.attrs]:
        about = dict(data[name].attrs)
        table = about.pop("texts")
        data[name] = (data[name].dims, data[table].values.astype(object)[data[name].values], about)
        data = data.drop_vars(table)
    return data


RUN = Kind("latent-workbench run", 1)
"""Folders of ``read(..., out=folder)``."""


def open_reading(path: str | os.PathLike[str]) -> Any:
    """Open a file that :meth:`Reading.save` wrote, or a finished folder of ``read(..., out=folder)``.

    Returns
    -------
    Reading or tuple of Reading
        Of a folder with several readings, all of them.

    Raises
    ------
    ReadingError
        For what is missing, damaged, unfinished, something else, or from a newer version.
    """
    if Path(path).is_dir():
        folder = Folder.open(path, RUN)
        readings = tuple(open_reading(folder.path(name)) for name in sorted(folder.done))
        return readings[0] if len(readings) == 1 else readings
    path = Path(path)
    if not path.is_file():
        raise ReadingError(f"There is no reading at {path}.")
    try:
        with xr.open_dataset(path, engine="h5netcdf", mask_and_scale=False) as file:
            data = file.load()
    except Exception as error:  # h5py raises many kinds, all of which mean the same to a user
        raise ReadingError(
            f"{path} cannot be opened as a reading ({type(error).__name__}: {error}). It is damaged, cut short, "
            "or not a reading; take the original file or read the model again."
        ) from error
    if data.attrs.get("workbench_format") != FORMAT:
        raise ReadingError(
            f"{path} is a netCDF file, but not one that the workbench wrote. Open it with xarray.open_dataset."
        )
    version = int(data.attrs.pop("workbench_version"))
    if version > VERSION:
        raise ReadingError(
            f"{path} has format version {version} and this workbench reads up to {VERSION}: upgrade latent-workbench."
        )
    del data.attrs["workbench_format"]
    if data.attrs.pop("digest", None) not in (None, _digest(data)):  # files of version 0.1.0 have none
        raise ReadingError(f"{path} is damaged: its numbers or texts are not those that were saved. Take the original.")
    data = _texts_in_place(data)
    provenance = json.loads(str(data.attrs.pop("provenance")))
    for name, variable in data.variables.items():
        variable.encoding.clear()
        if variable.dtype.kind == "O":
            data[name] = variable.astype(object)
    data.attrs = {k: v.item() if isinstance(v, np.generic) else v for k, v in data.attrs.items()}
    data.encoding.clear()
    return Reading(data, provenance)


class Charts:
    """The charts of a reading by name; calling it draws the first that fits.

    With ``ax=`` a chart is drawn by matplotlib into the axes given, one for each panel, and these are returned; without
    it the result is that of :meth:`Reading.figure`.
    """

    def __init__(self, reading: Reading):
        self._reading = reading

    def __call__(self, kind: str | None = None, *, ax: Any = None, **options: Any) -> Any:
        figure = self._reading.figure(kind, **options)
        return figure if ax is None else figure.matplotlib(ax=ax)

    def __getattr__(self, kind: str) -> Any:
        if kind.startswith("_"):
            raise AttributeError(kind)
        return partial(self, kind)

    def __dir__(self) -> list[str]:
        from workbench.figures.charts import charts

        return [name for name, chart in charts().items() if not chart.lacks(self._reading.data)]

    def __repr__(self) -> str:
        return f"<charts of this reading: {', '.join(dir(self))}>"
