"""States that say nothing of their context: what the nearest neighbours of a real state are compared with.

The null of a state must be like it: the same kind of position (text, no attention sink), in prompts of the same length,
made of tokens such as the prompts'.  Two kinds are run through the model, in one further pass:

* *shuffled*: the prompts with their tokens in random order.  Of a prompt whose order means nothing (random tokens) the
  shuffled versions are exchangeable with the prompt itself, so that a rank p-value is valid.
* *random*: prompts of the same lengths whose tokens are drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.engine.run import observe
from workbench.inputs import encode
from workbench.readers import Output, Plan, Rows
from workbench.sinks import Norms, placeholder_ids
from workbench.sites import Site
from workbench.stats import fdr
from workbench.weights import TOLERANCE

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.readers import Run

ROWS, EACH = (256, 1024), 3
"""Null states at each depth: three for each place that is read, within these limits."""
PRIOR = 3
"""A token's own null scores weigh as n / (n + PRIOR)."""
FEWEST = 20
"""With fewer there is no floor and no p: NaN, and the reason."""
ROUNDING = 1e-5
"""Scores this close count as equal."""
_VARIANTS, _TOKENS = 256, 1024

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


def null_states(
    run: Run, sites: list[Site], rows: int | None = None, *, draw: Draw | None = None, seed: int = 0
) -> Null:
    """States at ``sites`` of the run's prompts with their tokens in random order, or drawn anew with ``draw``.

    Special tokens, and pieces of images, stay where they are and are no null states.  ``rows``: how many; default:
    three for each place that the run reads, but no fewer than 256 and no more than 1024.
    """
    places = sum(len(prompt.positions) for prompt in run.prompts)
    rows = rows or min(max(EACH * places, ROWS[0]), ROWS[1])
    # Readers of one run share what they need alike: one pass serves them all.
    kept = run.kept.setdefault(("nulls", seed, rows, draw), {})
    missing = [site for site in sites if site not in kept]
    if missing:
        variants, chosen = _variants(run, rows, draw, seed)
        if not variants:
            none = np.zeros(0, np.int64)
            kept |= {site: (torch.zeros(0, run.model.d_model), none, none) for site in missing}
        else:
            kept |= states_at(run.model, variants, missing, chosen, progress=run.progress)
        kept["prompts"] = variants
    states, prompt, position = (list(x) for x in zip(*(kept[site] for site in sites), strict=True))
    reason = "" if kept["prompts"] else "no prompt has two text tokens to shuffle"
    return Null(states, kept["prompts"], prompt, position, reason)


def _variants(run: Run, rows: int, draw: Draw | None, seed: int) -> tuple[list[list[int]], list[np.ndarray]]:
    """Prompts with other tokens in the places of text, and at which positions of each a null state is taken."""
    rng = np.random.default_rng(seed)
    fixed = fixed_ids(run.model)
    movable = [np.flatnonzero(~np.isin(prompt.ids, fixed)) for prompt in run.prompts]
    usable = [i for i, prompt in enumerate(run.prompts) if len(movable[i]) > 1 and not prompt.extras]
    if not usable:
        return [], []
    # As many tokens as the prompts have are run again, at least 1024 (and so often more prompts than these).
    room = max(_TOKENS, sum(len(prompt.ids) for prompt in run.prompts))
    mean = max(1, round(float(np.mean([len(run.prompts[i].ids) for i in usable]))))
    count = max(1, min(_VARIANTS, room // mean))
    order = np.concatenate([rng.permutation(usable) for _ in range(-(-count // len(usable)))])[:count]
    # Small prompts are shuffled whole: several tokens' states come from one pass.
    each = max(-(-rows // count), min(16, rows))
    variants, chosen = [], []
    for i in order:
        ids, free = np.array(run.prompts[i].ids), movable[i]
        ids[free] = rng.permutation(ids[free]) if draw is None else draw(rng, len(free))
        variants.append(ids.tolist())
        chosen.append(rng.permutation(free)[: min(each, rows - sum(map(len, chosen)))])
        if sum(map(len, chosen)) >= rows:
            break
    return variants, chosen


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


def p_and_q(best: np.ndarray, run: Run, null: Null, scores: list[np.ndarray], left_out: np.ndarray) -> Any:
    """Rank p of each cell's best score among its depth's null scores, and q over all cells (Benjamini-Hochberg).

    Some tokens are near to something in any context.  So a score counts by how far it lies above what its token reaches
    without context: the mean of all null scores and, as far as they tell, of its token's,

        r = s - m - sum_i (s_i - m) / (n + 3)        over the n null scores s_i of the same token,

    where a null score is not counted for itself.  p = (1 + how many null r reach the cell's) / (1 + how many there
    are).

    Args: best [prompt, depth, position], NaN where nothing was read; scores of the null's states for each depth; cells
    ``left_out`` (as best) that the null is not like.  Returns: p and q, as best.
    """
    p = np.full(best.shape, np.nan, np.float32)
    tokens = np.full((len(best), best.shape[2]), -1)
    for i, prompt in enumerate(run.prompts):
        tokens[i, : len(prompt.positions)] = np.array(prompt.ids)[prompt.positions]
    for depth, own in enumerate(scores):
        if len(own) < FEWEST:
            continue
        places = zip(null.prompt[depth], null.position[depth], strict=True)
        of = np.array([null.prompts[i][at] for i, at in places])
        centred, kinds = own - own.mean(), np.unique(of)
        place = np.searchsorted(kinds, of)
        total, count = np.bincount(place, centred), np.bincount(place)
        null_r = centred - (total[place] - centred) / (count[place] - 1 + PRIOR)
        at = np.searchsorted(kinds, tokens).clip(0, len(kinds) - 1)
        r = best[:, depth] - own.mean() - np.where(kinds[at] == tokens, total[at] / (count[at] + PRIOR), 0)
        # The same state in another batch is the same number but for rounding.
        p[:, depth] = (1 + len(own) - np.searchsorted(np.sort(null_r), r - ROUNDING)) / (1 + len(own))
    p[np.isnan(best) | left_out] = np.nan
    return p, fdr(p).astype(np.float32)


def left_out(run: Run, sites: list[Site]) -> np.ndarray:
    """[prompt, depth, position] cells that these nulls are not like: sinks, special tokens, pieces of images."""
    fixed = fixed_ids(run.model)
    other = np.zeros((len(run.prompts), len(run.positions)), bool)
    for i, prompt in enumerate(run.prompts):
        other[i, : len(prompt.positions)] = np.isin(np.array(prompt.ids)[prompt.positions], fixed)
    sinks = [run.norms.sinks(site) if site in run.norms else np.zeros(other.shape, bool) for site in sites]
    return np.stack(sinks, 1) | other[:, None]


def floors(null: list[np.ndarray], level: float = 0.95) -> np.ndarray:
    """[depth] what ``level`` of the null scores stay under; NaN where there are too few."""
    found = [np.quantile(scores, level) if len(scores) >= FEWEST else np.nan for scores in null]
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
