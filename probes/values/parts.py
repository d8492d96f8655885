"""Items read in parts that are always the same, so that a row does not depend on how many processes share the work.

The same prompt gives other last bits in a batch of another shape.  So an instrument whose rows depend on the model and
their own item alone (its attribute ``apart`` is True) is asked about the same few items at a time wherever it reads:
offline, live, and in one process or many.  Any other instrument is asked about all items at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from probes.values.duplicates import Joined
from probes.values.units import opened
from workbench.errors import ReadingError
from workbench.reading import Reading

PART = 16
"""Items in a part: with a handful of framings enough to fill a GPU, and few enough for many processes."""
BATCH = 32
"""Prompts in a batch where nothing else is said.  A size that follows the free memory would differ from run to run."""


def parts(instrument: Any, items: Sequence[Any]) -> list[list[int]]:
    """Numbers of the items in each part.

    Dealt out like cards, those with a negation first: a framing that asks negations then finds one in every part.
    """
    if not getattr(instrument, "apart", False):
        return [list(range(len(items)))]
    first = [i for i, item in enumerate(items) if getattr(item, "negated", "")]
    order = first + sorted(set(range(len(items))) - set(first))
    number = min(-(-len(items) // PART), len(first) or len(items))
    return [order[k::number] for k in range(number)]


def read_part(
    instrument: Any, model: Any, items: Sequence[Any], own: Sequence[int], batch_size: int | None, seed: int
) -> Reading:
    """The instrument's rows of the items with these numbers.  What is low in a part is said of the whole (tracker)."""
    from probes.values.answers import LowMass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowMass)
        some = Joined(items[i] for i in own)  # what is near a duplicate is known of all items alone
        return opened(instrument.read(model, some, batch_size=batch_size or BATCH, seed=seed, progress=False))


def joined(instrument: Any, items: Sequence[Any], tables: Mapping[int, Reading]) -> Reading:
    """Parts, by their number -> one reading in the order of the items; what has no item axis is the first part's.

    Its provenance is the first part's, with the prompts, tokens and items of all.

    Raises ReadingError where the rows are not those of the items.
    """
    cuts = parts(instrument, items)
    for k, own in enumerate(cuts):
        ids = [str(x) for x in tables[k].data["item"].values]
        if ids != [str(items[i].item_id) for i in own]:
            raise ReadingError(f"{instrument.name} gave {len(ids)} items in another order than it was asked.")
    order = np.argsort(np.concatenate([np.array(own) for own in cuts]))
    if len(cuts) == 1:
        return Reading(tables[0].data.isel(item=order), tables[0].provenance)
    readings = [tables[k] for k in range(len(cuts))]
    some = [own.data for own in readings]
    data = xr.concat(
        some, "item", data_vars="minimal", coords="minimal", compat="override", join="exact", combine_attrs="override"
    )
    from probes.values.answers import COST

    data.attrs |= {name: sum(own.attrs[name] for own in some) for name in COST if name in data.attrs}
    steps = [_whole(own, instrument, items) for own in zip(*(part.provenance for part in readings), strict=True)]
    return Reading(data.isel(item=order), steps)


def _whole(steps: Sequence[Mapping[str, Any]], instrument: Any, items: Sequence[Any]) -> dict[str, Any]:
    """One step of all parts' provenance."""
    if steps[0]["step"] == "instrument":
        more = {k: v for k, v in steps[0]["reader"].items() if k not in ("name", "items")}
        return instrument.step(items, **more, **{k: sum(own["cost"][k] for own in steps) for k in steps[0]["cost"]})
    return {**steps[0], **{k: sum(own[k] for own in steps) for k in ("prompts", "prompts_read") if k in steps[0]}}


def read_all(instrument: Any, model: Any, items: Sequence[Any], batch_size: int | None, seed: int) -> Reading:
    """All parts, one after the other."""
    cuts = parts(instrument, items)
    return joined(
        instrument,
        items,
        {k: read_part(instrument, model, items, own, batch_size, seed) for k, own in enumerate(cuts)},
    )
