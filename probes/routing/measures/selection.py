"""The experts of each label, chosen so that chance chooses none, and handed on to a fine-tuning script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probes.results import family
from probes.routing.measures.confounds import CONFOUNDS, confounds
from probes.routing.measures.contrast import Contrast, gap, warn_of
from probes.routing.measures.documents import Clusters, Documents, chosen, shares
from probes.routing.tracer import numbered
from workbench.errors import InputError
from workbench.reading import Reading
from workbench.stats import over, step_down
from workbench.variables import about

if TYPE_CHECKING:
    from probes.routing.store import Trace


VARIABLES = {
    **family(
        "gap",
        about("activation gap, highest less second share", better="high", short_name="activation gap"),
        "p",
    ),
    "threshold": about("activation gap from which on the expert is selected", "", "high", "floor", "gap"),
    "owner": about("label with the highest share", role="label", of="gap"),
    "selected": about("experts selected for the label", role="mask"),
    "stability": about("share of bootstraps that select the expert again", better="high"),
    "shared": about("experts of all labels", role="mask"),
    **CONFOUNDS,
}


def select(
    source: Reading | Trace,
    *,
    alpha: float = 0.05,
    shared: int | None = None,
    blocks: Any = None,
    clusters: Clusters = None,
    tokens: int | str | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Reading:
    """The experts of each label by activation gap, chosen so that chance chooses any in ``alpha`` of all analyses.

    A gap is the highest share among the labels less the second (arXiv 2605.29714).

    Parameters
    ----------
    alpha
        Family-wise: over all experts of all blocks that are searched.
    shared
        How many experts of a block are listed as everyone's, those with the highest mean share; None: 5, or all where
        there are fewer.
    blocks
        Those searched, below 0: from the model's last; None: all.
    clusters, tokens, draws, seed
        As in :func:`probes.routing.measures.divergence`.

    Returns
    -------
    Reading
        gap, gap_p (family-wise) [block, expert]; threshold [block, expert]: the gap from which on this expert is
        selected; owner [block, expert]: the label with the highest share; selected [label, block, expert]; stability:
        how often a selected expert is selected again in bootstraps of the documents; shared [block, expert].

    Raises
    ------
    InputError
        For a label with fewer than two documents (clusters), and for blocks and numbers that are not there.

    Notes
    -----
    The threshold is not chosen by hand: gaps in units of their standard errors are compared with the largest anywhere
    when labels are shuffled among documents (step-down max-T; Westfall & Young 1993).  A rare expert needs a smaller
    gap than a busy one, and labels of few or short documents a larger one.
    """
    documents = Documents(source, clusters=clusters, tokens=tokens, seed=seed)
    documents.needs_labels("A gap", whole=True)
    if not 0 < alpha < 1:
        raise InputError(f"alpha={alpha} is no probability. Use 0.05, or another number between 0 and 1.")
    shared = min(5, documents.experts.max()) if shared is None else shared
    if not 0 <= shared <= documents.experts.max():
        raise InputError(f"shared={shared}, and a block has {documents.experts.max()} experts.")
    there = documents.blocks.tolist()
    asked = numbered(blocks, documents.data.attrs.get("n_layers") or max(there) + 1, there)
    if absent := sorted(set(asked) - set(there)):
        raise InputError(f"Block {absent[0]} is not in the reading; there are {there}.")
    every = Contrast.of(documents)
    if alone := [name for name, n in zip(documents.names, every.clusters, strict=True) if n < 2]:
        raise InputError(
            f"Label {alone[0]!r} has one document (or near-duplicates of one), so nothing says how much its documents "
            "differ. Read more of it, or leave it out."
        )
    beside, refused = confounds(documents, seed=seed)
    share = shares(documents.by_label())
    wanted = np.isin(there, asked) & ~np.isnan(share).any((0, 2))
    searched = documents.exists & wanted[:, None]
    observed, null = every.test(lambda found: np.where(searched, gap(found), np.nan), draws, seed)
    p = np.where(refused.any(), np.nan, step_down(observed, null))
    warn_of("gap_p", draws, 1, every.ways(), alpha)
    # The statistic that chance passes too seldom to matter, among the experts that are not selected.
    left, few = searched & ~(p <= alpha), int(alpha * (1 + len(null)) + 1e-9) - 1
    largest = np.sort(np.where(left, null, -np.inf).max((1, 2)))[::-1]
    critical = 0.0 if not left.any() else largest[few] if few >= 0 else np.inf
    ordered = np.sort(np.nan_to_num(share), 0)
    gaps = np.where(searched, ordered[-1] - ordered[-2], 0)
    threshold = np.where(searched, critical * over(gaps, observed), np.nan)
    idle = searched & ~(observed > 0)
    if idle.any():
        # Where labels use an expert alike, the standard error is that of its two first labels.
        two = np.sort(every.shares(every.label[None]).variance[0], 0)[-2:].sum(0)
        threshold = np.where(idle, critical * np.sqrt(two), threshold)
    number = np.arange(len(documents.names))[:, None, None]
    owner = np.nan_to_num(share).argmax(0)
    selected = (p <= alpha) & (owner == number)

    def again(weights: np.ndarray) -> np.ndarray:
        drawn = shares(documents.by_label(weights))
        top = np.sort(np.nan_to_num(drawn), -3)
        kept = (top[..., -1, :, :] - top[..., -2, :, :] > threshold)[..., None, :, :]
        return kept & (np.nan_to_num(drawn).argmax(-3)[..., None, :, :] == number)

    kept = documents.drawn(again, 200, seed + 1)
    mean = np.where(documents.exists, np.nan_to_num(share).mean(0), -1)
    common = (-mean).argsort(-1, kind="stable").argsort(-1, kind="stable") < shared
    two, three = ("block", "expert"), ("label", "block", "expert")
    return documents.table(
        "select",
        {
            "gap": (two, gaps), "gap_p": (two, p), "threshold": (two, threshold),
            "owner": (two, np.array(documents.names, object)[owner]),
            "selected": (three, selected), "stability": (three, np.where(selected, kept.mean(0), np.nan)),
            "shared": (two, common & searched),
            **beside,
        },
        VARIABLES,
        {
            "alpha": alpha, "shared": int(shared), "blocks": asked, **chosen(clusters, tokens), "draws": draws,
            "seed": seed,
        },
    )  # fmt: skip


def export(selection: Reading, model: Any = None) -> dict[str, Any]:
    """A selection as plain values for a fine-tuning script: label -> block -> experts, and the shared ones.

    An expert that is selected for a label is not listed as shared.  ``threshold``: the least gap that was selected in a
    block, None where there is none.
    With ``model`` also what share of its parameters each label's experts are (parameter_share).
    """
    blocks = selection["block"].values.tolist()
    common = selection["shared"] & ~selection["selected"].any("label")
    plan = {
        "model": selection.data.attrs["model"],
        "threshold": {str(b): _least(selection.data.sel(block=b)) for b in blocks},
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


def _least(table: Any) -> float | None:
    own = table["gap"].values[table["selected"].values.any(0)]
    return float(own.min()) if len(own) else None


def _parameters(model: Any, block: int) -> int:
    """Parameters of one expert."""
    layer = model.moe[block]
    module = model.module.get_submodule(layer.name if layer.before else layer.name.rsplit(".", 1)[0] + ".experts")
    return sum(p.numel() for p in module.parameters()) // layer.n_experts
