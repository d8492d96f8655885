"""States that say nothing of their context: what the nearest neighbours of a real state are compared with.

The null of a state must be like it: of its kind (text, or a piece of a picture), at the same position, no attention
sink, in prompts of the same length, made of tokens or patches such as the prompts'.  For text two kinds are run through
the model, each in one further pass:

* *shuffled*: the prompts with their tokens in random order; pictures stay in place.  Of a prompt whose order means
  nothing (random tokens) the shuffled versions are exchangeable with the prompt itself, so that a rank p-value is
  valid.
* *random*: prompts of the same lengths whose tokens are drawn at random.

For pieces of pictures, in the prompts as they are:

* *patches*: the picture with its cells in random order: what a patch gives without its surroundings.  Of a picture of
  noise the shuffled versions are exchangeable with the picture itself.
* *noise*: pictures of coloured noise of the same sizes.
* *others*: the picture of another prompt, scaled and cut to the size of this one, so that its pieces stand at the same
  places.

A Gaussian draw with the mean and the covariance of the states is no such null: states of tokens in random order exceed
the 95th percentile of its best cosines in a quarter to all of the places of ``organism:story``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.engine.run import observe
from workbench.errors import InputError
from workbench.images import cells as pieces
from workbench.inputs import Prompt, encode, with_pictures
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
PICTURES = {"patches": 20, "noise": 8, "others": 8, "shuffled": 20}
"""Of how many pictures null states are at least; of the null of text beside pictures, at most.  All pieces of one may
lie above those of another: above all of 20 shuffled versions a picture comes as rarely as once in 20."""
PICTURED = 512
"""States of noise, and of others' pictures."""
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
OF_PICTURES = (
    f"pictures: p and floor_patches are of states of the pictures with their cells in random order, of at least "
    f"{PICTURES['patches']} of them, floor_noise of pictures of coloured noise, floor_others of other prompts' "
    "pictures; visual tokens that show nothing are left out; q: over the cells of each kind"
)
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
    of_images = {
        f"{score}_floor_{name}": about(
            f"95th percentile of the best {score} in {said}", role="floor", of=score, short_name=said, kind="image"
        )
        for name, said in {
            "patches": "shuffled patches", "noise": "pictures of noise", "others": "other pictures",
        }.items()
    }  # fmt: skip
    return {
        f"{score}_floor_shuffled": about(
            f"95th percentile of the best {score} in shuffled prompts", role="floor", of=score,
            short_name="shuffled prompts",
        ),
        **of_images,
        f"{score}_p": about(
            f"p of the nearest {nearest} among states of shuffled prompts", role="p", short_name="p of nearest", **told
        ),
        f"{score}_q": about(
            f"p of the nearest {nearest}, adjusted for the number of cells", role="q", short_name="q of nearest", **told
        ),
    }  # fmt: skip


def of_kinds(table: Mapping[str, Mapping[str, Any]], run: Run) -> dict[str, dict[str, Any]]:
    """Attributes of variables as they are where pieces of pictures are read, too: which null is whose."""
    found = {name: dict(own) for name, own in table.items()}
    if pictured(run):
        for name, own in found.items():
            if own.get("role") == "p":
                own["long_name"] += " (text) or shuffled patches (pictures)"
            elif own.get("role") in ("floor", "null", "low", "high") or name.startswith("index_layer_share"):
                # What is of tokens is no null of what a picture shows.
                own.setdefault("kind", "image" if "_image" in name else "text")
    return found


def settings(run: Run) -> dict[str, str]:
    """What provenance says of the nulls."""
    return {**SETTINGS, "floor_pictures": OF_PICTURES} if pictured(run) else SETTINGS


def pictured(run: Run) -> bool:
    """Whether a place is read that shows a part of a picture."""
    return any(len(_shown(prompt)) for prompt in run.prompts)


def _shown(prompt: Prompt) -> np.ndarray:
    """Positions that are read and show a part of one of the prompt's pictures."""
    visual = getattr(prompt, "visual", None)
    if visual is None or not len(visual.pictures):
        return np.zeros(0, int)
    return np.intersect1d(prompt.positions, visual.shown)


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
    rows = _count(run, places, draws)
    key = ("nulls", seed, draws or rows, draw)
    reason = "no prompt has two text tokens to shuffle, one of them at a place that is read"
    return _null(run, key, sites, lambda: _variants(run, rows, draw, seed, limited=draws is None), reason)


def picture_nulls(run: Run, sites: list[Site], draws: int | None = None, *, seed: int = 0) -> dict[str, Null]:
    """Null states of pieces of pictures, at the places of pictures that the run reads: patches, noise, others.

    Parameters
    ----------
    draws
        How many states of shuffled patches; None: three for each place that is read, no fewer than 512 and no more than
        4096.  They are of as many pictures as it takes, at least :data:`PICTURES`.

    Returns
    -------
    {} where no place is read that shows a part of a picture.
    """
    places = sum(len(_shown(prompt)) for prompt in run.prompts)
    if not places:
        return {}
    rows = {"patches": _count(run, places, draws), "noise": PICTURED, "others": PICTURED}
    lacking = {"others": "there is one picture: nothing to put in its place"}
    return {
        kind: _null(
            run, ("nulls", kind, seed, n), sites, partial(_with_others, run, kind, n, seed), lacking.get(kind, "")
        )
        for kind, n in rows.items()
    }  # fmt: skip


def _count(run: Run, places: int, draws: int | None) -> int:
    held = max(1024, HELD // ((run.model.n_layers + 1) * run.model.d_model))
    return draws or min(max(EACH * places, ROWS[0]), ROWS[1], held)


Variants = tuple[Sequence["list[int] | Prompt"], list[np.ndarray]]
"""Null prompts (token ids, or prompts with pictures), and at which positions of each a null state is taken."""


def _null(run: Run, key: Any, sites: list[Site], make: Callable[[], Variants], reason: str) -> Null:
    # Readers of one run share what they need alike: one pass serves them all.
    kept = run.kept.setdefault(key, {})
    missing = [site for site in sites if site not in kept]
    if missing:
        variants, chosen = make()
        if not variants:
            none = np.zeros(0, np.int64)
            kept |= {site: (torch.zeros(0, run.model.d_model), none, none) for site in missing}
        else:
            kept |= states_at(run.model, variants, missing, chosen, progress=run.progress)
        kept["prompts"] = [v.ids if isinstance(v, Prompt) else v for v in variants]
    states, prompt, position = (list(x) for x in zip(*(kept[site] for site in sites), strict=True))
    return Null(states, kept["prompts"], prompt, position, "" if kept["prompts"] else reason)


def _variants(run: Run, rows: int, draw: Draw | None, seed: int, *, limited: bool) -> Variants:
    """Prompts with other tokens in the places of text."""
    rng = np.random.default_rng(seed)
    movable = [np.flatnonzero(text) for text in texts(run)]
    read = [np.intersect1d(prompt.positions, own) for prompt, own in zip(run.prompts, movable, strict=True)]
    # What else came with token ids may say which of them is what.
    able = [not getattr(p, "extras", None) or (p.visual is not None and len(p.visual.pictures)) for p in run.prompts]
    usable = [i for i in range(len(run.prompts)) if able[i] and len(movable[i]) > 1 and len(read[i])]
    if not usable:
        return [], []
    count = -(-rows // max(1, int(np.mean([len(read[i]) for i in usable]))))
    if limited:
        # As many tokens as the prompts have are run again, at least 1024, and four prompts.
        room = max(_TOKENS, sum(len(prompt.ids) for prompt in run.prompts))
        count = min(count, max(4, room // round(np.mean([len(run.prompts[i].ids) for i in usable]))))
        if any(getattr(run.prompts[i], "extras", None) for i in usable):
            count = min(count, PICTURES["shuffled"])  # each with its picture, of many more tokens than the text
    order = np.concatenate([rng.permutation(usable) for _ in range(-(-count // len(usable)))])[:count]
    each = -(-rows // sum(len(read[i]) for i in order))
    variants: list[list[int] | Prompt] = []
    places = []
    for number, i in enumerate(order):
        prompt = run.prompts[i]
        ids, free = np.array(prompt.ids), movable[i]
        ids[free] = rng.permutation(ids[free]) if draw is None else draw(rng, len(free))
        variants.append(replace(prompt, ids=ids.tolist()) if getattr(prompt, "extras", None) else ids.tolist())
        near = [rng.permutation(free[(free != at) & (abs(free - at) <= at // NEAR)])[: each - 1] for at in read[i]]
        places += [(number, at) for at in np.unique(np.concatenate([read[i], *near])).tolist()]
    return _some(variants, places, rows, rng)


def _with_others(run: Run, kind: str, rows: int, seed: int) -> Variants:
    """Prompts with other pictures in the places of theirs."""
    rng = np.random.default_rng([seed, *kind.encode()])
    read = {i: shown for i, prompt in enumerate(run.prompts) if len(shown := _shown(prompt))}
    made = {i: _makers(run, i, kind) for i in read}
    usable = [i for i in read if made[i]]
    if not usable:
        return [], []
    count = max(PICTURES[kind], -(-rows // int(np.mean([len(read[i]) for i in usable]))))
    order = np.concatenate([rng.permutation(usable) for _ in range(-(-count // len(usable)))])[:count].tolist()
    variants: list[list[int] | Prompt] = []
    places = []
    for number, i in enumerate(order):
        make = made[i][int(rng.integers(len(made[i])))]
        images = partial(make, int(rng.integers(2**31)))
        variants.append(with_pictures(run.model, run.prompts[i], images, f"prompt {i} with {pieces.SAID[kind]}"))
        places += [(number, at) for at in read[i].tolist()]
    return _some(variants, places, rows, rng)


def _makers(run: Run, index: int, kind: str) -> list[Callable[[int], list[Any]]]:
    """Ways to make a prompt's null pictures out of a seed: one, or one for each prompt that has others."""
    visual: Any = run.prompts[index].visual
    if kind == "patches":
        return [partial(pieces.shuffled, visual)]
    if kind == "noise":
        return [partial(pieces.noisy, visual)]
    own = {picture.digest for picture in visual.pictures}
    others = [prompt.visual.pictures for prompt in run.prompts if prompt.visual is not None]
    others = [some for some in others if some and not own & {picture.digest for picture in some}]
    return [partial(pieces.exchanged, visual, some) for some in others]


def _some(
    variants: Sequence[list[int] | Prompt], places: list[tuple[int, int]], rows: int, rng: np.random.Generator
) -> Variants:
    """Variants with so many of the places (number of the variant, position), at random."""
    kept = [places[k] for k in rng.permutation(len(places))[:rows]]
    chosen = [np.array([at for k, at in kept if k == number], int) for number in range(len(variants))]
    some = [k for k, own in enumerate(chosen) if len(own)]
    return [variants[k] for k in some], [np.sort(chosen[k]) for k in some]


def texts(run: Run) -> list[np.ndarray]:
    """[position] of each prompt whether its token is text: no special token, and no piece of a picture."""
    fixed, found = fixed_ids(run.model), []
    for prompt in run.prompts:
        text = ~np.isin(prompt.ids, fixed)
        if getattr(prompt, "visual", None) is not None:
            text[prompt.visual.at] = False
        found.append(text)
    return found


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
    score: str, best: np.ndarray, run: Run, sites: list[Site], found: Mapping[str, tuple[Null, list[np.ndarray]]]
) -> dict[str, Any]:
    """Floors, p and q of the best scores of a reading, as :func:`variables` describes them.

    Some tokens are near to something in any context.  So a score counts by how far it lies above the mean of all scores
    and, as far as they tell, of the others of its token,

        r = s - m - sum_i (s_i - m) / (n + 3)        over the n other scores s_i of the same token,

    and p = (1 + how many null r reach the cell's) / (1 + how many there are).  m and s_i are of cells and null states
    together, so that both are treated alike: where a prompt is exchangeable with its shuffled versions, changing places
    with one of them changes no r, and p holds its level (a permutation test; conformal prediction, Vovk et al. 2005).

    Pieces of pictures are compared with those of pictures alone, as if all were of one token: p is then the rank of the
    score itself.

    Parameters
    ----------
    best
        [prompt, depth, position], NaN where nothing was read.
    found
        Nulls by name ("shuffled" for text, "patches" for pictures; others have a floor alone), each with the scores of
        its states, for each depth.

    Returns
    -------
    Variables with dimensions and the reason for what is NaN.  Cells that no null is like (:func:`cells`) have no p.
    """
    p, q = np.full(best.shape, np.nan, np.float32), np.full(best.shape, np.nan, np.float32)
    tokens = np.full((len(best), best.shape[2]), -1)
    for i, prompt in enumerate(run.prompts):
        tokens[i, : len(prompt.positions)] = np.array(prompt.ids)[prompt.positions]
    reasons = {}
    for kind, own in cells(run, sites).items():
        name = {"text": "shuffled", "image": "patches"}[kind]
        if name not in found:
            continue
        null, scores = found[name]
        reasons[kind] = null.reason
        known, mine = ~np.isnan(best) & own, np.full(best.shape, np.nan, np.float32)
        for depth, values in enumerate(scores):
            here = known[:, depth]
            if len(values) >= FEWEST and here.any():
                places = zip(null.prompt[depth], null.position[depth], strict=True)
                of = np.array([null.prompts[i][at] for i, at in places])
                values, of = values[~np.isnan(values)], of[~np.isnan(values)]  # a state of zeros has no score
                labels = np.r_[of, tokens[here]] if kind == "text" else np.zeros(len(of) + int(here.sum()), int)
                r = _above_token(np.r_[values, best[:, depth][here]], labels)
                null_r, r = np.sort(r[: len(values)]), r[len(values) :]
                # The same state in another batch is the same number but for rounding.
                reach = len(values) - np.searchsorted(null_r, r - ROUNDING)
                mine[:, depth][here] = (1 + reach) / (1 + len(values))
        least = min((len(values) for values in scores if len(values) >= FEWEST), default=0)
        some = ~np.isnan(mine)
        p[some], q[some] = mine[some], adjusted(mine, least, f"{score}_q")[some]
    said = next(iter(reasons.values()), "") if len(reasons) < 2 else ""
    said = said or "; ".join(f"{kind}: {reason}" for kind, reason in reasons.items() if reason)
    axis = sites[0].axis
    return {
        **{
            f"{score}_floor_{name}": ((axis,), floors(scores), {"reason": null.reason})
            for name, (null, scores) in found.items()
        },
        f"{score}_p": (("prompt", axis, "position"), p, {"reason": said}),
        f"{score}_q": (("prompt", axis, "position"), q, {"reason": said}),
    }  # fmt: skip


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


def cells(run: Run, sites: list[Site]) -> dict[str, np.ndarray]:
    """[prompt, depth, position] which cells are of a kind that has a null: text, and pieces of pictures.

    Sinks, special tokens, visual tokens that show nothing, and pieces of pictures that nothing is known of are neither.
    """
    shape = (len(run.prompts), len(run.positions))
    found = {"text": np.zeros(shape, bool), "image": np.zeros(shape, bool)}
    for i, (prompt, text) in enumerate(zip(run.prompts, texts(run), strict=True)):
        here = np.array(prompt.positions, int)
        found["text"][i, : len(here)] = text[here]
        found["image"][i, : len(here)] = np.isin(here, _shown(prompt))
    sinks = run.norms.sinks_at(sites, len(run.positions))
    return {kind: own[:, None] & ~sinks for kind, own in found.items()}


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
    model: Model, prompts: Sequence[list[int] | Prompt], sites: list[Site], chosen: list[np.ndarray], *,
    sinks: bool = False, **options: Any,
) -> dict[Site, tuple[Tensor, np.ndarray, np.ndarray]]:  # fmt: skip
    """States [rows, width] at chosen positions of prompts, and the prompt and position of each.

    Prompts are token ids, or encoded.  Sinks are left out, unless ``sinks``.
    """
    known = [
        replace(p, positions=list(range(len(p.ids)))) if isinstance(p, Prompt) else encode(model, [p], "all")[0]
        for p in prompts
    ]
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
