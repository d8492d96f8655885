"""The logit lens: read any state as if it were the last one (nostalgebraist, 2020).

A state goes through the model's own final norm and unembedding, softcap and scales included.  At ``resid``
this asks what the model would say if it stopped at that layer; at ``attn_out`` and ``mlp_out`` it asks what
that part's own vector points to.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lenses.nulls import FEWEST, adjusted, checked
from lenses.targets import Followed, Targets
from workbench.errors import InputError
from workbench.readers import Found, Layers, Output, Plan, Reader, Rows, Run
from workbench.readout import Readout, logprob
from workbench.sinks import IMAGE, TEXT, kinds, kinds_read
from workbench.sites import STREAM, Site, resolve
from workbench.variables import about

if TYPE_CHECKING:
    from workbench.inputs import Batch


NULLS = 128
"""How many positions the null is taken from, unless ``draws`` says it."""
NULL = "median of the target under the states of other positions, same layer; p: its rank among them"
NO_NULL = "the target is chosen by the state itself, so any state would give it more than others do"
VARIABLES = {
    "token_id": about("top token", role="label", of="logprob"),
    "logprob": about("log-probability of the top token", "nats", "high", short_name="log-prob", scale="log-prob"),
    "entropy": about("entropy of the prediction", "nats", "low", short_name="entropy"),
    "kl_to_final": about("KL divergence from the final layer", "nats", "low", short_name="KL to final"),
    "target_rank": about("rank of target (0 = top)", better="low", short_name="rank of target", scale="log"),
    "target_logprob": about(
        "log-probability of target", "nats", "high", short_name="log-prob of target", scale="log-prob"
    ),
    "target_logprob_null": about(
        "median log-probability of target under the states of other positions", "nats", role="null",
        of="target_logprob", short_name="other positions' states",
    ),
    "target_logprob_p": about(
        "p of target among the states of other positions", better="low", role="p", of="target_logprob",
        short_name="p of target",
    ),
    "target_logprob_q": about(
        "p of target, adjusted for the number of cells", better="low", role="q", of="target_logprob",
        short_name="q of target",
    ),
    "target_id": about("target", role="label", of="target_logprob"),
    "target": about("target", role="label", of="target_id"),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class LogitLens(Reader):
    """Top tokens, log-probabilities, entropy, KL to the final layer, and rank of targets at every depth.

    Args:
        layers: which layers of the residual stream (0..L); with another ``at``, which blocks.  None: all.
        top_k: how many tokens to keep at each place.
        targets: whose rank and log-probability to follow.  None: what the model says in the end (its own top
            token at that position); "next": the prompt's own next token; otherwise a token (text or id) or a
            list of them, which adds the dimension ``target``.  A list of lists has one for each prompt, all of one
            length: ``[[" red"], [" blue"]]``; ``target_id`` is then [prompt, target], and ``target`` only a number.
        at: "resid", "resid_mid", "attn_out" or "mlp_out".
        compare: compare with the final layer (``kl_to_final``).  False lets a pass stop at the deepest layer
            asked for.
        draws: how many other positions the null is taken from; None: 128.  With more, p can be smaller.
        precision: "fp32", or "bf16" for a faster product with an fp32 re-rank of the best candidates.  On a CPU the
            gain is measured when a pass begins, and bf16 refused where there is none.

    The reading's variables, in natural logarithms (nats); ``layer`` is ``block`` unless ``at="resid"``:
        token_id, logprob                [prompt, layer, position, rank]
        entropy, kl_to_final             [prompt, layer, position]; KL(final || this layer), as in the tuned lens
        target_rank (0 = top), target_logprob   [prompt, layer, position] (+ target)
        target_logprob_null              the control: the median log-probability of the same target under the states of
                                         other positions at the same layer.  Of all positions of the prompts, whichever
                                         are read, up to 128 are drawn; attention sinks are compared with sinks
                                         alone, and others with others.  Pieces of pictures are compared with pieces of
                                         pictures, of which 128 are drawn, too, and text with text; visual tokens that
                                         show nothing have no null
        target_logprob_p                 its rank among them, (1 + how many reach it) / (1 + how many there are): small
                                         where this state gives the target more than states here do anyway.  NaN with
                                         fewer than 20
        target_logprob_q                 the same over all cells of the reading (Benjamini-Hochberg).  Where one target
                                         is followed at all positions these are each other's null, and some have to be
                                         first: q is then near 1.  It tells something of "next", of lists for each
                                         prompt, and of a few positions among many
    With ``targets=None`` all three are NaN: that target is chosen by the state itself, so that any state would give its
    own more than another's, of random tokens too.  Say which token is meant, or take "next".

    Raises InputError when a pass begins, for targets that are not one token, unknown ids, and lists that do not fit
    the prompts.
    """

    question = "What would the model say if it stopped at this layer?"

    layers: Layers = None
    top_k: int = 10
    targets: Targets = None
    _: KW_ONLY
    at: str = "resid"
    compare: bool = True
    draws: int | None = None
    precision: str = "fp32"
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise InputError(f"top_k={self.top_k} keeps no token. Use 1 or more.")
        if self.at not in STREAM:
            raise InputError(f"at={self.at!r} is not a place for a logit lens: {', '.join(STREAM)}.")
        checked(self.draws)
        if not self.compare and self.targets is None:
            object.__setattr__(self, "targets", "next")

    def plan(self, run: Run) -> Plan:
        model = run.model
        wanted, final = resolve(model, self.at, self.layers), Site("resid", model.n_layers)
        readout = Readout(model, self.precision, self.chunk)
        followed = Followed(run, self.targets)
        k = min(self.top_k, model.vocab_size)
        others = _Others(run, (self.draws or NULLS) if followed.ids is not None or followed.next else 0)
        axis = "layer" if self.at == "resid" else "block"
        cells = ("prompt", axis, "position")
        each = (*cells, "target")

        def observe(states: Rows, batch: Batch) -> dict[str, Any]:
            n = len(batch)
            last = readout.final(readout.features(states[final][:n]), k) if self.compare else None
            targets = followed.at(batch)
            if targets is None:
                assert last is not None
                targets = last.statistics.token_id[0, :, :1]
            found: dict[str, Any] = {"followed": targets[:, 0]}
            if not wanted:
                return found
            targets = targets.to(readout.weight.device)
            size, width = len(states[wanted[0]]), readout.weight.shape[1]
            norms = torch.empty(len(wanted), size)
            features = torch.empty(len(wanted), size, width, device=readout.weight.device)
            for i, site in enumerate(wanted):
                # One site after the other, so that the model's own states are let go of.
                rows = states.pop(site)
                norms[i], features[i] = rows.float().norm(dim=-1), readout.features(rows)
            read = readout.read(features[:, :n], k, final=last, targets=targets.clamp_min(0))
            missing = (targets < 0)[None]
            found |= {
                "token_id": read.token_id, "logprob": read.logprob, "entropy": read.entropy,
                "target_rank": read.rank.masked_fill(missing, -1),
                "target_logprob": read.target_logprob.masked_fill(missing, torch.nan),
            }  # fmt: skip
            if self.compare:
                found["kl_to_final"] = read.kl
            found = {name: value.transpose(0, 1) if value.ndim > 1 else value for name, value in found.items()}
            if others.places:
                found |= {"norm": norms[:, :n].T, "null_place": batch.also}
                here = torch.from_numpy(batch.also_row)
                rows = here.to(features.device)
                total = read.logsumexp
                if features.shape[1] > n:
                    total = torch.cat([total, readout.read(features[:, n:], 1).logsumexp], 1)
                found |= {
                    "null_features": features[:, rows].transpose(0, 1), "null_total": total[:, rows].double().T,
                    "null_norm": norms[:, here].T,
                }  # fmt: skip
            return found

        outputs = {
            "token_id": Output((*cells, "rank"), dtype=np.int32), "logprob": Output((*cells, "rank")),
            "entropy": Output(cells), "target_rank": Output(each, dtype=np.int32), "target_logprob": Output(each),
            "followed": Output(("prompt", "position"), dtype=np.int32),
            "null_place": Output(("null",), dtype=np.int64, combine="concat", key=True),
            "null_features": Output(("null", axis, "feature"), combine="concat"),
            "null_total": Output(("null", axis), dtype=np.float64, combine="concat"),
            "null_norm": Output(("null", axis), combine="concat"),
        }  # fmt: skip
        if others.places:
            outputs["norm"] = Output(cells)
        if self.compare:
            outputs["kl_to_final"] = Output(cells)

        def finish(found: Found) -> dict[str, Any]:
            ids, target = found["followed"], found["target_logprob"]
            targets = ids[..., None] if followed.ids is None else np.broadcast_to(
                followed.ids[:, None], (len(ids), ids.shape[1], followed.count)
            )  # fmt: skip
            null, p = others.compared(readout, wanted, targets, found)
            dims, (few, no_p) = each if followed.listed else cells, others.lacking(p)
            own = {
                "target_rank": (found["target_rank"],), "target_logprob": (target,),
                "target_logprob_null": (null, {"reason": few}), "target_logprob_p": (p, {"reason": no_p}),
                "target_logprob_q": (
                    adjusted(p, others.fewest, "target_logprob_q", others.more), {"reason": no_p},
                ),
            }  # fmt: skip
            return {
                name: (dims, array if followed.listed else array[..., 0], *more) for name, (array, *more) in own.items()
            } | followed.labels(ids)

        said = NULL if others.places else f"none: {NO_NULL}"
        return Plan(
            sorted({*wanted, final} if self.compare else {*wanted}),
            outputs,
            observe,
            {
                axis: [site.index for site in wanted], "rank": k, "target": followed.names,
                "feature": readout.weight.shape[1],
            },
            finish,
            followed.named(VARIABLES),
            {"at": self.at, "target": "given" if followed.ids is not None else self.targets or "final"},
            {
                "top_k": k, "chunk": None, "null": said, "null_positions": len(others.places),
            },
            also=others.places,
        )  # fmt: skip


class _Others:
    """Which positions the null takes its targets' log-probabilities from.

    Up to ``draws`` positions of all prompts, and as many that show a part of a picture, where there are pictures: text
    is compared with text and pictures with pictures.  They are the same however the prompts are batched or which
    positions are read.  Their normed states are kept [null, layer, f], and never anything of the size of the
    vocabulary.
    """

    def __init__(self, run: Run, draws: int) -> None:
        self._run = run
        known = [kinds(run.model, prompt) for prompt in run.prompts]
        rng, self.places, most = np.random.default_rng(0), [], 0
        for kind in (TEXT, IMAGE):
            every = [(p, int(at)) for p, own in enumerate(known) for at in np.flatnonzero(own == kind)]
            kept = sorted(rng.choice(len(every), draws, replace=False)) if len(every) > draws else range(len(every))
            self.places += [every[i] for i in kept]
            most = max(most, len(every))
        self._of: np.ndarray = np.array([known[p][at] for p, at in self.places], int)
        counts = np.bincount(self._of)
        self.fewest = int(counts[counts > 0].min(initial=len(self.places)))
        self.more = "draws=" if most > draws else "positions of further prompts, in all "

    def lacking(self, p: np.ndarray) -> tuple[str, str]:
        """Why there is no null, and no p, where that is so everywhere; else ""."""
        if not self.places:
            return NO_NULL, NO_NULL
        if len(self.places) < 2:
            return "no other position", "no other position"
        few = f"fewer than {FEWEST} other positions" if np.isnan(p).all() else ""
        return "", few

    def compared(
        self, readout: Readout, sites: list[Site], targets: np.ndarray, found: Found
    ) -> tuple[np.ndarray, np.ndarray]:
        """[prompt, layer, position, target] the median of the target under the others' states, and the rank's p."""
        followed = found["target_logprob"]
        null, p = np.full_like(followed, np.nan), np.full_like(followed, np.nan)
        kept = found["null_place"]
        if not len(kept):
            return null, p
        where = np.full((*targets.shape[:2], 1), -1)
        kind = kinds_read(self._run.model, self._run.prompts, targets.shape[1])  # anew: a prompt may have grown since
        for k, place in enumerate(kept):
            i, at = self.places[place]
            slots = [s for s, a in enumerate(self._run.prompts[i].positions) if a == at]
            where[i, slots] = k
        # Slots of shorter prompts hold nothing.
        cell = np.argwhere((targets >= 0) & ~np.isnan(followed).any(1))
        ids, which = np.unique(targets[tuple(cell.T)], return_inverse=True)
        device = readout.weight.device
        for depth, site in enumerate(sites):
            limits = np.full(3, np.inf)
            if site in self._run.norms:
                limits[:2] = self._run.norms.limit(site)
            of = self._of[kept]
            sink, others_sink = found["norm"][:, depth] > limits[kind], found["null_norm"][:, depth] > limits[of]
            rows = torch.from_numpy(np.ascontiguousarray(found["null_features"][:, depth])).to(device)
            total = torch.from_numpy(found["null_total"][:, depth])
            for lo in range(0, len(ids), 1024):
                own = np.flatnonzero((which >= lo) & (which < lo + 1024))
                z = readout.logits_of(rows, torch.from_numpy(ids[lo : lo + 1024]).long().to(device))
                table = logprob(z.T.double().cpu(), total).numpy()
                for some in np.array_split(own, max(1, len(own) // 4096)):
                    i, s, t = cell[some].T
                    given = table[which[some] - lo].copy()
                    given[(sink[i, s][:, None] != others_sink[None]) | (kind[i, s][:, None] != of[None])] = np.nan
                    itself = where[i, s] == np.arange(len(kept))
                    given[itself] = np.nan
                    count = (~np.isnan(given)).sum(1)
                    here = followed[i, depth, s, t]
                    # The same state in another batch is the same number but for rounding.
                    reach = (given >= (here - 1e-5 * (1 + np.abs(here)))[:, None]).sum(1)
                    p[i, depth, s, t] = np.where(count < FEWEST, np.nan, (1 + reach) / (1 + count))
                    some_there = count > 0
                    null[i[some_there], depth, s[some_there], t[some_there]] = np.nanmedian(given[some_there], 1)
        return null, p
