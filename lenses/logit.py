"""The logit lens: read any state as if it were the last one (nostalgebraist, 2020).

A state goes through the model's own final norm and unembedding, softcap and scales included.  At ``resid``
this asks what the model would say if it stopped at that layer; at ``attn_out`` and ``mlp_out`` it asks what
that part's own vector points to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lenses.targets import Followed, Targets
from workbench.errors import InputError
from workbench.readout import Readout, Statistics, logprob
from workbench.sites import Site, resolve
from workbench.variables import about, described

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.reader import Run
    from workbench.reading import Reading


NULLS, LEAST = 128, 20
"""How many positions the null is taken from at most, and how many it takes for a p-value."""
NULL = "median of the target under the states of other positions, same layer; p: its rank among them"
NO_NULL = "none: the target is chosen by the state itself, so any state would give it more than others do"
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
    "target_id": about("target", role="label", of="target_logprob"),
    "target": about("target", role="label", of="target_id"),
}  # fmt: skip


class LogitLens:
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
        precision: "fp32", or "bf16" for a faster product with an fp32 re-rank of the best candidates.  On a CPU the
            gain is measured when a pass begins, and bf16 refused where there is none.

    The reading's variables, in natural logarithms (nats); ``layer`` is ``block`` unless ``at="resid"``:
        token_id, logprob                [prompt, layer, position, rank]
        entropy, kl_to_final             [prompt, layer, position]; KL(final || this layer), as in the tuned lens
        target_rank (0 = top), target_logprob   [prompt, layer, position] (+ target)
        target_logprob_null              the control: the median log-probability of the same target under the states of
                                         other positions at the same layer.  Of all positions of the prompts, whichever
                                         are read, up to 128 are drawn; attention sinks are compared with sinks
                                         alone, and others with others
        target_logprob_p                 its rank among them, (1 + how many reach it) / (1 + how many there are): small
                                         where this state gives the target more than states here do anyway.  NaN with
                                         fewer than 20.  One p a cell: over layers and positions use
                                         :func:`workbench.stats.fdr`
    With ``targets=None`` both are NaN: that target is chosen by the state itself, so that any state would give its own
    more than another's, of random tokens too.  Say which token is meant, or take "next".

    Raises InputError when a pass begins, for targets that are not one token, unknown ids, and lists that do not fit
    the prompts.
    """

    def __init__(
        self,
        layers: int | Iterable[int] | None = None,
        top_k: int = 10,
        targets: Targets = None,
        *,
        at: str = "resid",
        compare: bool = True,
        precision: str = "fp32",
        chunk: int | None = None,
    ) -> None:
        if top_k < 1:
            raise InputError(f"top_k={top_k} keeps no token. Use 1 or more.")
        if at not in ("resid", "resid_mid", "attn_out", "mlp_out"):
            raise InputError(f"at={at!r} is not a place for a logit lens: resid, resid_mid, attn_out or mlp_out.")
        if not compare and targets is None:
            targets = "next"
        self.layers, self.top_k, self.targets, self.at = layers, top_k, targets, at
        self.compare, self.precision, self.chunk = compare, precision, chunk

    def sites(self, model: Model) -> list[Site]:
        self._wanted = resolve(model, self.at, self.layers)
        self._final = Site("resid", model.n_layers)
        return sorted({*self._wanted, self._final} if self.compare else {*self._wanted})

    def begin(self, run: Run) -> None:
        model, self._run = run.model, run
        self._readout = Readout(model, self.precision, self.chunk)
        self._k = min(self.top_k, model.vocab_size)
        self._followed = Followed(run, self.targets)
        depth, count = len(self._wanted), self._followed.count
        self._arrays: dict[str, np.ndarray] = {
            "token_id": run.empty([depth], np.int32, after=[self._k]),
            "logprob": run.empty([depth], after=[self._k]),
            "entropy": run.empty([depth]),
            "target_rank": run.empty([depth], np.int32, after=[count]),
            "target_logprob": run.empty([depth], after=[count]),
            "target_logprob_null": run.empty([depth], after=[count]),
            "target_logprob_p": run.empty([depth], after=[count]),
        }
        if self.compare:
            self._arrays["kl_to_final"] = run.empty([depth])
        chosen = self._followed.ids is not None or self._followed.next
        self._others = _Others(run, depth, chosen)

    def observe(self, site: Site, states: Tensor, batch: Batch) -> None:
        notes = batch.scratch.get(self) or batch.scratch.setdefault(self, self._others.notes(batch))
        rows = batch.take(states)
        if len(notes.more):
            flat = states.reshape(-1, states.shape[-1])
            rows = torch.cat([rows, flat.index_select(0, notes.more.to(flat.device))])
        # Only the normed rows are kept: the states themselves belong to the model.
        notes.features[site] = self._readout.features(rows)
        notes.norms[site] = rows.float().norm(dim=-1).cpu()
        if len(notes.features) == len(self._wanted) + (self.compare and self._final not in self._wanted):
            self._read(notes, batch)
            del batch.scratch[self]

    def _read(self, notes: _Notes, batch: Batch) -> None:
        readout, wanted, features, n = self._readout, list(self._wanted), notes.features, len(batch)
        final = readout.final(features[self._final][:n], self._k) if self.compare else None
        targets = self._followed.at(batch)
        if targets is None:
            assert final is not None
            targets = final.statistics.token_id[0, :, :1]
        targets = targets.to(readout.weight.device)
        self._followed.note(batch, targets)
        known = targets.clamp_min(0)
        if wanted:
            kept = [features.pop(site) if site != self._final else features[site] for site in wanted]
            stacked = torch.stack(kept)
            del kept
            found = readout.read(stacked[:, :n], self._k, final=final, targets=known)
            total = found.logsumexp
            if len(notes.more):
                total = torch.cat([total, readout.read(stacked[:, n:], 1).logsumexp], 1)
            self._others.see(notes, batch, stacked, total, torch.stack([notes.norms[site] for site in wanted]))
            self._store(found, targets, batch)

    def _store(self, found: Statistics, targets: Tensor, batch: Batch) -> None:
        p, s = batch.prompt.numpy(), batch.slot.numpy()
        missing = (targets < 0).cpu().numpy()
        values = {
            "token_id": found.token_id,
            "logprob": found.logprob,
            "entropy": found.entropy,
            "kl_to_final": found.kl,
            "target_rank": found.rank,
            "target_logprob": found.target_logprob,
        }
        for name, value in values.items():
            if value is None or name not in self._arrays:
                continue
            rows = value.transpose(0, 1).cpu().numpy()  # [rows, layers, ...]
            if name.startswith("target"):
                blank = -1 if name == "target_rank" else np.nan
                rows = np.where(missing[:, None], np.array(blank, rows.dtype), rows)
            self._arrays[name][p, :, s] = rows

    def end(self) -> Reading:
        from workbench.reading import Reading

        null, p = self._others.compared(self._readout, self._wanted, self._targets(), self._arrays["target_logprob"])
        self._arrays |= {"target_logprob_null": null, "target_logprob_p": p}
        axis = "layer" if self.at == "resid" else "block"
        dims = ("prompt", axis, "position")
        variables: dict[str, Any] = {}
        for name, array in self._arrays.items():
            if array.ndim == 3:
                variables[name] = (dims, array)
            elif not name.startswith("target"):
                variables[name] = ((*dims, "rank"), array)
            elif self._followed.listed:
                variables[name] = ((*dims, "target"), array)
            else:
                variables[name] = (dims, array[..., 0])
        labels, coords = self._followed.labels()
        about = NULL if self._others.chosen else NO_NULL
        roles = {"target_logprob_null": "null", "target_logprob_p": "p"}
        for name, role in roles.items():
            variables[name] = (*variables[name], {"role": role, "of": "target_logprob", "null": about})
        kind = "given" if self._followed.ids is not None else self.targets or "final"
        data = self._run.dataset(
            {**variables, **labels},
            {axis: [s.index for s in self._wanted], "rank": np.arange(self._k), **coords},
            reader="LogitLens", at=self.at, target=kind,
        )  # fmt: skip
        settings = {
            "name": "LogitLens", "at": self.at, "top_k": self._k, "precision": self.precision,
            "kl": "KL(final || layer), nats", "null": about, "null_positions": len(self._others.places),
        }  # fmt: skip
        return Reading(described(data, VARIABLES), {"reader": settings})

    def _targets(self) -> np.ndarray:
        """[prompt, position, target] ids that were followed; -1 where there is none."""
        ids = self._followed.ids
        if ids is None:
            return self._followed.by_position[..., None]
        return np.broadcast_to(ids[:, None], (len(ids), len(self._run.positions), ids.shape[1]))


@dataclass
class _Notes:
    """What is kept of a batch until its last site.

    features: for each site [selected + more, f]; norms: [selected + more] of the states.  more: flat index of the rows
    that are there for the null alone.  place, row: which of the null's positions are in the batch, and in which rows.
    """

    features: dict[Site, Tensor]
    norms: dict[Site, Tensor]
    more: Tensor
    place: list[int]
    row: list[int]


class _Others:
    """States of other positions, which the null takes its targets' log-probabilities from.

    Up to :data:`NULLS` positions of all prompts: the same ones however the prompts are batched or which positions are
    read.  Their normed states are kept [layer, null, f], and never anything of the size of the vocabulary.
    """

    def __init__(self, run: Run, depth: int, chosen: bool) -> None:
        self.chosen = chosen
        every = [(p, at) for p, prompt in enumerate(run.prompts) for at in range(len(prompt.ids))] if chosen else []
        rng = np.random.default_rng(0)
        kept = sorted(rng.choice(len(every), NULLS, replace=False)) if len(every) > NULLS else range(len(every))
        self.places = [every[i] for i in kept]
        self._of: dict[int, list[int]] = {}
        for k, (p, _) in enumerate(self.places):
            self._of.setdefault(p, []).append(k)
        self._run, n = run, len(self.places)
        self._features: Tensor | None = None
        self._total = np.full((depth, n), np.nan)
        self._norm = np.full((depth, n), np.nan)
        self._own_norm = run.empty([depth])

    def notes(self, batch: Batch) -> _Notes:
        """Which rows of a batch are of the null's positions; those that are not selected come on top."""
        prompts = [self._run.prompts[p] for p in batch.prompt.tolist()]
        at = [own.positions[s] for own, s in zip(prompts, batch.slot.tolist(), strict=True)]
        rows = batch.rows.tolist()
        number = {key: i for i, key in enumerate(zip(batch.prompt.tolist(), at, strict=True))}
        # A pass that shows a part of each prompt (it goes on from a cache) has no states but those.
        whole = batch.first is not None and batch.first.tolist() == [r - a for r, a in zip(rows, at, strict=True)]
        begin = {p: 0 for p in batch.prompts}
        if whole:
            mask = batch.inputs["attention_mask"]
            begin = {
                p: r * mask.shape[1] + int(own.argmax())
                for r, (p, own) in enumerate(zip(batch.prompts, mask, strict=True))
            }
        place, row, more = [], [], []
        for p in begin:
            for k in self._of.get(p, ()):
                key = self.places[k]
                if key not in number:
                    if not whole:
                        continue
                    number[key] = len(number)
                    more.append(begin[p] + key[1])
                place.append(k)
                row.append(number[key])
        return _Notes({}, {}, torch.tensor(more, dtype=torch.long), place, row)

    def see(self, notes: _Notes, batch: Batch, features: Tensor, total: Tensor, norms: Tensor) -> None:
        """Keep what [layer, row] features of a batch are of the null's positions."""
        own, place = norms[:, : len(batch)].numpy(), notes.place
        mine = features[:, notes.row].cpu()
        sums, lengths = total[:, notes.row].double().cpu().numpy(), norms[:, notes.row].numpy()
        p, s = batch.prompt.numpy(), batch.slot.numpy()

        def commit() -> None:
            if self._features is None:
                self._features = torch.zeros(len(mine), len(self.places), features.shape[-1])
            self._features[:, place] = mine
            self._total[:, place], self._norm[:, place] = sums, lengths
            self._own_norm[p, :, s] = own.T

        if self.chosen:
            batch.done.append(commit)

    def compared(
        self, readout: Readout, sites: list[Site], targets: np.ndarray, followed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """[prompt, layer, position, target] the median of the target under the others' states, and the rank's p."""
        null, p = np.full_like(followed, np.nan), np.full_like(followed, np.nan)
        if self._features is None:
            return null, p
        where = np.full((*targets.shape[:2], 1), -1)
        for k, (i, at) in enumerate(self.places):
            slots = [s for s, a in enumerate(self._run.prompts[i].positions) if a == at]
            where[i, slots] = k
        # Slots of shorter prompts hold nothing.
        cell = np.argwhere((targets >= 0) & ~np.isnan(followed).any(1))
        ids, which = np.unique(targets[tuple(cell.T)], return_inverse=True)
        device = readout.weight.device
        for depth, site in enumerate(sites):
            limit = self._run.norms.limit(site)[0]
            sink, others_sink = self._own_norm[:, depth] > limit, self._norm[depth] > limit
            rows = self._features[depth].to(device)
            for lo in range(0, len(ids), 1024):
                own = np.flatnonzero((which >= lo) & (which < lo + 1024))
                z = readout.logits_of(rows, torch.from_numpy(ids[lo : lo + 1024]).long().to(device))
                table = logprob(z.T.double().cpu(), torch.from_numpy(self._total[depth])).numpy()
                for some in np.array_split(own, max(1, len(own) // 4096)):
                    i, s, t = cell[some].T
                    given = table[which[some] - lo].copy()
                    given[sink[i, s][:, None] != others_sink[None]] = np.nan
                    itself = where[i, s] == np.arange(len(self.places))
                    given[itself] = np.nan
                    count = (~np.isnan(given)).sum(1)
                    here = followed[i, depth, s, t]
                    # The same state in another batch is the same number but for rounding.
                    reach = (given >= (here - 1e-5 * (1 + np.abs(here)))[:, None]).sum(1)
                    p[i, depth, s, t] = np.where(count < LEAST, np.nan, (1 + reach) / (1 + count))
                    some_there = count > 0
                    null[i[some_there], depth, s[some_there], t[some_there]] = np.nanmedian(given[some_there], 1)
        return null, p
