"""States that say nothing of their context: what the nearest neighbours of a real state are compared with.

The null of a state must be like it: at the same position, no attention sink, in prompts of the same length, made of
tokens such as the prompts'.  Two kinds are run through the model, each in one further pass:

* *shuffled*: the prompts with their tokens in random order.  Of a prompt whose order means nothing (random tokens) the
  shuffled versions are exchangeable with the prompt itself, so that a rank p-value is valid.
* *random*: prompts of the same lengths whose tokens are drawn at random.

A Gaussian draw with the mean and the covariance of the states is no such null: states of tokens in random order exceed
the 95th percentile of its best cosines in a quarter to all of the places of ``organism:story``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.engine.run import observe
from workbench.errors import InputError
from workbench.inputs import encode
from workbench.readers import Output, Plan, Rows
from workbench.sinks import Norms, placeholder_ids
from workbench.sites import Site
from workbench.stats import draws_for, fdr, least_q
from workbench.variables import about
from workbench.weights import TOLERANCE

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.readers import Run

ROWS, EACH, HELD = (512, 4096), 3, 2**28
"""Null states at each depth, unless ``draws`` says how many: three for each place that is read, within these limits;
beyond 1024 states no more than so many numbers over all depths of the model."""
PRIOR = 3
"""A token's own null scores weigh as n / (n + PRIOR)."""
FEWEST = 20
"""With fewer null states there is no floor and no p: NaN, and the reason."""
ROUNDING = 1e-5
"""Scores this close count as equal."""
NEAR = 8
"""Where there are too few null states at the very positions that are read: those up to an eighth of the way before or
behind (none before position 8)."""
SETTINGS = {
    "floor": f"95th percentile of the best score of states of the prompts with their tokens in random order, at the "
    f"positions that are read (unless draws says how many, {ROWS[0]} to {ROWS[1]}); sinks are left out",
    "p": "rank among the same states, less what a token reaches in any context; q: over all cells",
}  # fmt: skip
"""What provenance says of them."""
_TOKENS = 1024

Draw = Callable[[np.random.Generator, int], np.ndarray]


class Null:
    """Null states at each depth, where there are enough of them.

    Attributes:
        states: for each depth [rows, width], on the CPU; sinks are left out; none at a depth with too few of them.
        prompts: token ids of the prompts they are of.
        prompt, position: for each depth the number [rows] of the prompt in ``prompts``, and the position in it.
        reason: why there are too few of them somewhere; "" where there are enough.
    """

    def __init__(
        self, states: list[Tensor], prompts: list[list[int]], prompt: list[np.ndarray], position: list[np.ndarray],
        reason: str = "",
    ) -> None:  # fmt: skip
        few = [len(rows) for rows in states if len(rows) < FEWEST]
        self.reason = reason or (f"only {min(few)} null states at a depth; {FEWEST} are needed" if few else "")
        cut = [slice(None) if len(rows) >= FEWEST else slice(0) for rows in states]
        self.states = [rows[c] for rows, c in zip(states, cut, strict=True)]
        self.prompt = [rows[c] for rows, c in zip(prompt, cut, strict=True)]
        self.position = [rows[c] for rows, c in zip(position, cut, strict=True)]
        self.prompts = prompts

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Values of all states, depth after depth -> those of each depth."""
        return np.split(values, np.cumsum([len(rows) for rows in self.states])[:-1])


def variables(score: str, nearest: str) -> dict[str, dict[str, Any]]:
    """What the controls of a best score are (:func:`workbench.variables.about`); the lens shows the ``nearest``."""
    told: Mapping[str, Any] = {"better": "low", "of": score}
    return {
        f"{score}_floor_shuffled": about(
            f"95th percentile of the best {score} in shuffled prompts", role="floor", of=score,
            short_name="shuffled prompts",
        ),
        f"{score}_p": about(
            f"p of the nearest {nearest} among states of shuffled prompts", role="p", short_name="p of nearest", **told
        ),
        f"{score}_q": about(
            f"p of the nearest {nearest}, adjusted for the number of cells", role="q", short_name="q of nearest", **told
        ),
    }  # fmt: skip


def checked(draws: int | None) -> None:
    """Raise InputError for ``draws`` that are too few for a p-value."""
    if draws is not None and draws < FEWEST:
        raise InputError(f"draws={draws} gives no p-value: it takes {FEWEST} null states or more.")


def null_states(
    run: Run, sites: list[Site], draws: int | None = None, *, draw: Draw | None = None, seed: int = 0
) -> Null:
    """States at ``sites`` of the run's prompts with their tokens in random order, or drawn anew with ``draw``.

    Each is at the position of a place that the run reads, all places alike; in long prompts of which little is read
    also nearby (:data:`NEAR`), since each further one would take a pass over a whole prompt.  Special tokens, and
    pieces of images, stay where they are and are no null states.

    Parameters
    ----------
    draws
        How many; None: three for each place that the run reads, no fewer than 512 and no more than 4096, as far as a
        pass over as many tokens as the prompts have (at least 1024) gives them.
    """
    places = sum(len(prompt.positions) for prompt in run.prompts)
    held = max(1024, HELD // ((run.model.n_layers + 1) * run.model.d_model))
    rows = draws or min(max(EACH * places, ROWS[0]), ROWS[1], held)
    # Readers of one run share what they need alike: one pass serves them all.
    kept = run.kept.setdefault(("nulls", seed, draws or rows, draw), {})
    missing = [site for site in sites if site not in kept]
    if missing:
        variants, chosen = _variants(run, rows, draw, seed, limited=draws is None)
        if not variants:
            none = np.zeros(0, np.int64)
            kept |= {site: (torch.zeros(0, run.model.d_model), none, none) for site in missing}
        else:
            kept |= states_at(run.model, variants, missing, chosen, progress=run.progress)
        kept["prompts"] = variants
    states, prompt, position = (list(x) for x in zip(*(kept[site] for site in sites), strict=True))
    reason = "" if kept["prompts"] else "no prompt has two text tokens to shuffle, one of them at a place that is read"
    return Null(states, kept["prompts"], prompt, position, reason)


def _variants(
    run: Run, rows: int, draw: Draw | None, seed: int, *, limited: bool
) -> tuple[list[list[int]], list[np.ndarray]]:
    """Prompts with other tokens in the places of text, and at which positions of each a null state is taken."""
    rng = np.random.default_rng(seed)
    fixed = fixed_ids(run.model)
    movable = [np.flatnonzero(~np.isin(prompt.ids, fixed)) for prompt in run.prompts]
    read = [np.intersect1d(prompt.positions, own) for prompt, own in zip(run.prompts, movable, strict=True)]
    usable = [i for i, prompt in enumerate(run.prompts) if len(movable[i]) > 1 and len(read[i]) and not prompt.extras]
    if not usable:
        return [], []
    count = -(-rows // max(1, int(np.mean([len(read[i]) for i in usable]))))
    if limited:
        # As many tokens as the prompts have are run again, at least 1024, and four prompts.
        room = max(_TOKENS, sum(len(prompt.ids) for prompt in run.prompts))
        count = min(count, max(4, room // round(np.mean([len(run.prompts[i].ids) for i in usable]))))
    order = np.concatenate([rng.permutation(usable) for _ in range(-(-count // len(usable)))])[:count]
    each = -(-rows // sum(len(read[i]) for i in order))
    variants, places = [], []
    for number, i in enumerate(order):
        ids, free = np.array(run.prompts[i].ids), movable[i]
        ids[free] = rng.permutation(ids[free]) if draw is None else draw(rng, len(free))
        variants.append(ids.tolist())
        near = [rng.permutation(free[(free != at) & (abs(free - at) <= at // NEAR)])[: each - 1] for at in read[i]]
        places += [(number, at) for at in np.unique(np.concatenate([read[i], *near])).tolist()]
    kept = [places[k] for k in rng.permutation(len(places))[:rows]]
    chosen = [np.array([at for k, at in kept if k == number], int) for number in range(len(variants))]
    some = [k for k, own in enumerate(chosen) if len(own)]
    return [variants[k] for k in some], [np.sort(chosen[k]) for k in some]


def fixed_ids(model: Model) -> list[int]:
    """Token ids that are no text: special tokens, and what stands for pieces of images."""
    return sorted({*(getattr(model.tokenizer, "all_special_ids", None) or []), *placeholder_ids(model)})


def looks_ahead(model: Model) -> bool:
    """Whether states depend on the tokens behind them, as in encoders; asked once."""
    if "looks_ahead" not in model.known:
        special = set(fixed_ids(model))
        ids = [i for i in range(model.vocab_size // 2, model.vocab_size) if i not in special][:8] or [0] * 8
        site = Site("resid", model.n_layers)
        found = states_at(model, [ids, ids[:4]], [site], [np.arange(4)] * 2, sinks=True, batch_size=1)
        long, short = found[site][0].view(2, 4, -1).double()
        share = (long - short).norm(dim=-1) / short.norm(dim=-1).clamp_min(1e-30)
        model.known["looks_ahead"] = bool((share > TOLERANCE.get(model.dtype, 1e-4)).any())
    return model.known["looks_ahead"]


def tested(
    score: str, best: np.ndarray, run: Run, sites: list[Site], null: Null, scores: list[np.ndarray]
) -> dict[str, Any]:
    """Floor, p and q of the best scores of a reading, as :func:`variables` describes them.

    Some tokens are near to something in any context.  So a score counts by how far it lies above the mean of all scores
    and, as far as they tell, of the others of its token,

        r = s - m - sum_i (s_i - m) / (n + 3)        over the n other scores s_i of the same token,

    and p = (1 + how many null r reach the cell's) / (1 + how many there are).  m and s_i are of cells and null states
    together, so that both are treated alike: where a prompt is exchangeable with its shuffled versions, changing places
    with one of them changes no r, and p holds its level (a permutation test; conformal prediction, Vovk et al. 2005).

    Parameters
    ----------
    best
        [prompt, depth, position], NaN where nothing was read.
    scores
        Of the null's states, for each depth.

    Returns
    -------
    Variables with dimensions and the reason for what is NaN.  Cells that the null is not like (:func:`left_out`) have
    no p.
    """
    p = np.full(best.shape, np.nan, np.float32)
    tokens = np.full((len(best), best.shape[2]), -1)
    for i, prompt in enumerate(run.prompts):
        tokens[i, : len(prompt.positions)] = np.array(prompt.ids)[prompt.positions]
    known = ~np.isnan(best) & ~left_out(run, sites)
    for depth, own in enumerate(scores):
        cells = known[:, depth]
        if len(own) >= FEWEST and cells.any():
            places = zip(null.prompt[depth], null.position[depth], strict=True)
            of = np.array([null.prompts[i][at] for i, at in places])
            own, of = own[~np.isnan(own)], of[~np.isnan(own)]  # a state of zeros has no score
            r = _above_token(np.r_[own, best[:, depth][cells]], np.r_[of, tokens[cells]])
            null_r, r = np.sort(r[: len(own)]), r[len(own) :]
            # The same state in another batch is the same number but for rounding.
            reach = len(own) - np.searchsorted(null_r, r - ROUNDING)
            p[:, depth][cells] = (1 + reach) / (1 + len(own))
    q = adjusted(p, min((len(own) for own in scores if len(own) >= FEWEST), default=0), f"{score}_q")
    reason = {"reason": null.reason}
    cells = ("prompt", sites[0].axis, "position")
    return {
        f"{score}_floor_shuffled": ((sites[0].axis,), floors(scores), reason),
        f"{score}_p": (cells, p, reason),
        f"{score}_q": (cells, q, reason),
    }


def _above_token(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """r of scores [n] of states of these tokens (:func:`tested`)."""
    _, place = np.unique(tokens, return_inverse=True)
    centred = scores - scores.mean()
    total, count = np.bincount(place, centred), np.bincount(place)
    return centred - (total[place] - centred) / (count[place] - 1 + PRIOR)


def adjusted(p: np.ndarray, draws: int, name: str, more: str = "draws=", level: float = 0.05) -> np.ndarray:
    """q of all cells (Benjamini-Hochberg), called ``name``.

    Warns where none reaches ``level`` since, with so many draws of the null, no p can be small enough; ``more`` says
    how there can be more.
    """
    q = fdr(p).astype(np.float32)
    if not draws or np.isnan(p).all():
        return q
    cells, lowest = int((~np.isnan(p)).sum()), 1 / (1 + draws)
    # A cell that is itself among the draws has one fewer.
    at_limit, least = int((p <= 1.001 / draws).sum()), float(np.nanmin(q))
    # Some p are at the limit by chance; q says whether there are more of them than that.
    if at_limit and level < least <= 0.25 and least_q(draws, cells, at_limit) <= least * 1.001:
        warnings.warn(
            f"{name}: the least of {cells:,} cells is {least:.2g}, that of the {at_limit:,} whose p is as small as "
            f"{draws:,} draws of the null allow ({lowest:.2g}). To see whether they pass {level:g}, read fewer cells "
            f"(layers=, positions=) or with a larger null: {more}{draws_for(level, cells, at_limit):,}.",
            stacklevel=2,
        )
    return q


def left_out(run: Run, sites: list[Site]) -> np.ndarray:
    """[prompt, depth, position] cells that these nulls are not like: sinks, special tokens, pieces of images."""
    fixed = fixed_ids(run.model)
    other = np.zeros((len(run.prompts), len(run.positions)), bool)
    for i, prompt in enumerate(run.prompts):
        other[i, : len(prompt.positions)] = np.isin(np.array(prompt.ids)[prompt.positions], fixed)
    sinks = [run.norms.sinks(site) if site in run.norms else np.zeros(other.shape, bool) for site in sites]
    return np.stack(sinks, 1) | other[:, None]


def floors(null: list[np.ndarray], level: float = 0.95) -> np.ndarray:
    """[depth] what ``level`` of the null scores stay under; NaN where there are too few.

    The score of rank (n + 1) level, rounded up, which one more score of the same kind exceeds no more often than that.
    """
    known = [own[~np.isnan(own)] for own in null]
    found = [
        np.sort(own)[math.ceil((len(own) + 1) * level - 1e-9) - 1] if len(own) >= FEWEST else np.nan for own in known
    ]
    return np.array(found, np.float32)


def states_at(
    model: Model, prompts: list[list[int]], sites: list[Site], chosen: list[np.ndarray], *, sinks: bool = False,
    **options: Any,
) -> dict[Site, tuple[Tensor, np.ndarray, np.ndarray]]:  # fmt: skip
    """States [rows, width] at chosen positions of prompts of token ids, and the prompt and position of each.

    Sinks are left out, unless ``sinks``.
    """
    known = encode(model, prompts, "all")
    wanted = np.zeros((len(prompts), max(len(prompt.ids) for prompt in known)), bool)
    for row, positions in enumerate(chosen):
        wanted[row, positions] = True

    def look(states: Rows, batch: Batch) -> dict[str, Any]:
        some = np.flatnonzero(wanted[batch.prompt.numpy(), batch.position.numpy()])
        rows = torch.from_numpy(some)
        return {
            "prompt": batch.prompt[rows], "position": batch.position[rows],
            "state": torch.stack([states[site].index_select(0, rows.to(states[site].device)) for site in sites], 1),
        }  # fmt: skip

    key: Any = {"dtype": np.int64, "combine": "concat", "key": True}
    outputs = {
        "prompt": Output(("row",), **key), "position": Output(("row",), **key),
        "state": Output(("row", "site", "width"), combine="concat"),
    }  # fmt: skip
    plan = Plan(sites, outputs, look, {"site": len(sites), "width": model.d_model})
    norms = None if sinks else Norms(model, known)
    found = observe(model, known, plan, norms=norms, **options)
    prompt, position = found["prompt"], found["position"]
    kept = {}
    for i, site in enumerate(sites):
        good = np.ones(len(prompt), bool) if norms is None else ~norms.sinks(site)[prompt, position]
        kept[site] = torch.from_numpy(found["state"][good, i]), prompt[good], position[good]
    return kept
