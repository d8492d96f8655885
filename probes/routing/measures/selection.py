"""The experts of each label, chosen so that chance chooses none, and handed on to a fine-tuning script."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from probes.routing.measures.documents import Documents, shares
from workbench.errors import InputError
from workbench.reading import Reading
from workbench.stats import max_statistic_p


def select(
    reading: Reading, *, level: float = 0.05, shared: int = 5, blocks: Any = None, draws: int = 1000, seed: int = 0
) -> xr.Dataset:
    """The experts of each label by activation gap, with a threshold that chance passes in ``level`` of all analyses.

    A gap is the highest share among the labels less the second (arXiv 2605.29714).  Its threshold is not chosen by
    hand but from the largest gap anywhere when labels are shuffled among documents (max-statistic).

    gap, gap_p (family-wise) [block, expert], owner [block, expert]: the label with the highest share; selected
    [label, block, expert]; stability: how often a selected expert is selected again in bootstraps of the documents;
    shared [block, expert]: the ``shared`` experts with the highest mean share; threshold (attribute).
    """
    documents = Documents(reading)
    documents.needs_labels("A gap")
    if documents.mixed:
        raise InputError(
            "The threshold comes from labels shuffled among documents, and here labels are by token. Give labels by "
            "document."
        )
    wanted = np.ones(len(documents.blocks), bool)
    if blocks is not None:
        wanted = np.isin(documents.blocks, [b % (max(documents.blocks) + 1) for b in np.atleast_1d(blocks)])

    def gaps(count: np.ndarray) -> np.ndarray:
        ordered = np.sort(np.nan_to_num(shares(count)), 0)
        return np.where(documents.exists & wanted[:, None], ordered[-1] - ordered[-2], 0)

    count = documents.by_label()
    observed = gaps(count)
    null = documents.shuffled(gaps, draws, seed)
    threshold = float(np.quantile(null.reshape(len(null), -1).max(1), 1 - level))
    owner = np.nan_to_num(shares(count)).argmax(0)
    chosen = observed > threshold

    def picks(count: np.ndarray) -> np.ndarray:
        own = np.nan_to_num(shares(count)).argmax(0)
        return (gaps(count) > threshold) & (own == np.arange(len(documents.names))[:, None, None])

    rng = np.random.default_rng(seed + 1)
    kept = [picks(documents.by_label(picked=documents.resample(rng))) for _ in range(200)]
    selected = chosen & (owner == np.arange(len(documents.names))[:, None, None])
    mean = np.where(documents.exists, np.nan_to_num(shares(count)).mean(0), -1)
    best = np.argsort(-mean, 1)[:, :shared]
    common = np.zeros_like(chosen)
    common[np.arange(len(best))[:, None], best] = True
    two, three = ("block", "expert"), ("label", "block", "expert")
    found = documents.dataset(
        {
            "gap": (two, observed), "gap_p": (two, max_statistic_p(observed, null)),
            "owner": (two, np.array(documents.names, object)[owner]), "selected": (three, selected),
            "stability": (three, np.where(selected, np.mean(kept, 0), np.nan)),
            "shared": (two, common & wanted[:, None]),
        }
    )  # fmt: skip
    found.attrs.update(threshold=threshold, level=level)
    return found


def export(selection: xr.Dataset, model: Any = None) -> dict[str, Any]:
    """A selection as plain values for a fine-tuning script: label -> block -> experts, and the shared ones.

    With ``model`` also what share of its parameters each label's experts are (parameter_share).
    """
    blocks = selection["block"].values.tolist()
    plan = {
        "model": selection.attrs["model"],
        "threshold": selection.attrs["threshold"],
        "level": selection.attrs["level"],
        "selected": {
            str(label): {
                str(b): np.flatnonzero(selection["selected"].sel(label=label, block=b).values).tolist() for b in blocks
            }
            for label in selection["label"].values
        },
        "shared": {str(b): np.flatnonzero(selection["shared"].sel(block=b).values).tolist() for b in blocks},
    }
    if model is not None:
        each = {b: _parameters(model, b) for b in blocks}
        total = sum(p.numel() for p in model.module.parameters())
        plan["parameter_share"] = {
            label: sum(len(own[str(b)]) * each[b] for b in blocks) / total for label, own in plan["selected"].items()
        }
    return plan


def _parameters(model: Any, block: int) -> int:
    """Parameters of one expert."""
    layer = model.moe[block]
    module = model.module.get_submodule(layer.name if layer.before else layer.name.rsplit(".", 1)[0] + ".experts")
    return sum(p.numel() for p in module.parameters()) // layer.n_experts
