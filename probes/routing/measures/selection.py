"""The experts of each label, chosen so that chance chooses none, and handed on to a fine-tuning script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probes.results import family
from probes.routing.measures.documents import Documents, shares
from probes.routing.tracer import numbered
from workbench.errors import InputError
from workbench.reading import Reading
from workbench.stats import max_statistic_p
from workbench.variables import about

if TYPE_CHECKING:
    from probes.routing.store import Trace


VARIABLES = {
    **family("gap", about("activation gap, highest less second share", better="high"), "p"),
    "threshold": about("activation gap that chance passes in alpha of all analyses", "", "high", "floor", "gap"),
    "owner": about("label with the highest share", role="label", of="gap"),
    "selected": about("experts selected for the label", role="mask"),
    "stability": about("share of bootstraps that select the expert again", better="high"),
    "shared": about("experts of all labels", role="mask"),
}


def select(
    source: Reading | Trace,
    *,
    alpha: float = 0.05,
    shared: int | None = None,
    blocks: Any = None,
    draws: int = 1000,
    seed: int = 0,
) -> Reading:
    """The experts of each label by activation gap, with a threshold that chance passes in ``alpha`` of all analyses.

    A gap is the highest share among the labels less the second (arXiv 2605.29714).  Its threshold is not chosen by
    hand but from the largest gap anywhere when labels are shuffled among documents (max-statistic); where blocks have
    more or fewer experts, gaps are compared as multiples of a block's even share 1/E.

    Args:
        shared: how many experts of a block are listed as everyone's, those with the highest mean share; None: 5, or
            all where there are fewer.
        blocks: those searched, below 0: from the model's last; None: all.  The threshold is for these.

    gap, gap_p (family-wise) [block, expert], threshold [block], owner [block, expert]: the label with the highest
    share; selected [label, block, expert]; stability: how often a selected expert is selected again in bootstraps of
    the documents; shared [block, expert].
    """
    documents = Documents(source)
    documents.needs_labels("A gap", whole=True)
    if not 0 < alpha < 1:
        raise InputError(f"alpha={alpha} is no probability. Use 0.05, or another number between 0 and 1.")
    shared = min(5, documents.experts.max()) if shared is None else shared
    if not 0 <= shared <= documents.experts.max():
        raise InputError(f"shared={shared}, and a block has {documents.experts.max()} experts.")
    number, there = np.arange(len(documents.names))[:, None, None], documents.blocks.tolist()
    asked = numbered(blocks, documents.data.attrs.get("n_layers") or max(there) + 1, there)
    if absent := sorted(set(asked) - set(there)):
        raise InputError(f"Block {absent[0]} is not in the reading; there are {there}.")
    wanted = np.isin(there, asked) & ~np.isnan(shares(documents.by_label())).any((0, 2))
    scale = (documents.experts / documents.experts.max())[:, None]

    def gaps(weights: np.ndarray) -> np.ndarray:
        ordered = np.sort(shares(documents.by_label(weights)), -3)
        gap = scale * np.nan_to_num(ordered[..., -1, :, :] - ordered[..., -2, :, :])
        return np.where(documents.exists & wanted[:, None], gap, 0)

    def owners(weights: np.ndarray) -> np.ndarray:
        return np.nan_to_num(shares(documents.by_label(weights))).argmax(-3)

    observed, null = gaps(documents.once), documents.shuffled(gaps, draws, seed)
    threshold = float(np.quantile(null.reshape(len(null), -1).max(1), 1 - alpha))

    def picks(weights: np.ndarray) -> np.ndarray:
        return (gaps(weights) > threshold)[..., None, :, :] & (owners(weights)[..., None, :, :] == number)

    def again(weights: np.ndarray) -> np.ndarray:
        unknown = np.asarray(np.isnan(weights).any((-1, -2)))[..., None, None, None]
        return np.where(unknown, np.nan, picks(weights))

    owner, selected = owners(documents.once), picks(documents.once)
    kept = documents.resampled(again, 200, seed + 1)
    mean = np.where(documents.exists, np.nan_to_num(shares(documents.by_label())).mean(0), -1)
    common = (-mean).argsort(-1, kind="stable").argsort(-1, kind="stable") < shared
    one, two, three = ("block",), ("block", "expert"), ("label", "block", "expert")
    return documents.table(
        "select",
        {
            "gap": (two, observed / scale), "gap_p": (two, max_statistic_p(observed, null)),
            "threshold": (one, threshold / scale[:, 0]), "owner": (two, np.array(documents.names, object)[owner]),
            "selected": (three, selected), "stability": (three, np.where(selected, kept.mean(0), np.nan)),
            "shared": (two, common & documents.exists & wanted[:, None]),
        },
        VARIABLES,
        {"alpha": alpha, "shared": int(shared), "blocks": asked, "draws": draws, "seed": seed},
    )  # fmt: skip


def export(selection: Reading, model: Any = None) -> dict[str, Any]:
    """A selection as plain values for a fine-tuning script: label -> block -> experts, and the shared ones.

    An expert that is selected for a label is not listed as shared.
    With ``model`` also what share of its parameters each label's experts are (parameter_share).
    """
    blocks = selection["block"].values.tolist()
    common = selection["shared"] & ~selection["selected"].any("label")
    plan = {
        "model": selection.data.attrs["model"],
        "threshold": {str(b): float(selection["threshold"].sel(block=b)) for b in blocks},
        "alpha": selection.provenance["settings"]["alpha"],
        "selected": {
            str(label): {
                str(b): np.flatnonzero(selection["selected"].sel(label=label, block=b).values).tolist() for b in blocks
            }
            for label in selection["label"].values
        },
        "shared": {str(b): np.flatnonzero(common.sel(block=b).values).tolist() for b in blocks},
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
