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

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.reader import Run
    from workbench.reading import Reading


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
        target_logprob_null              the same target under a state of another position of the same prompt and
                                         layer: what any state here gives that token (the control).  The other
                                         position is half a prompt away, whichever positions are read; NaN for
                                         prompts of one token

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
        }
        if self.compare:
            self._arrays["kl_to_final"] = run.empty([depth])

    def observe(self, site: Site, states: Tensor, batch: Batch) -> None:
        notes = batch.scratch.get(self) or batch.scratch.setdefault(self, self._notes(batch))
        rows = batch.take(states)
        if len(notes.more):
            flat = states.reshape(-1, states.shape[-1])
            rows = torch.cat([rows, flat.index_select(0, notes.more.to(flat.device))])
        # Only the normed rows are kept: the states themselves belong to the model.
        notes.features[site] = self._readout.features(rows)
        if len(notes.features) == len(self._wanted) + (self.compare and self._final not in self._wanted):
            self._read(notes, batch)
            del batch.scratch[self]

    def _notes(self, batch: Batch) -> _Notes:
        """Where the null of each selected row is: the position half a prompt away, selected or not."""
        prompts = [self._run.prompts[p] for p in batch.prompt.tolist()]
        position = [own.positions[s] for own, s in zip(prompts, batch.slot.tolist(), strict=True)]
        rows, more = batch.rows.tolist(), []
        other = torch.arange(len(rows))
        # A pass that shows a part of each prompt (it goes on from a cache) has no state of another position.
        first = [row - at for row, at in zip(rows, position, strict=True)]
        if batch.first is not None and batch.first.tolist() == first:
            length = [len(own.ids) for own in prompts]
            away = [start + (at + n // 2) % n for start, at, n in zip(first, position, length, strict=True)]
            number = {row: i for i, row in enumerate(rows)}
            other = torch.tensor([number.setdefault(row, len(number)) for row in away], dtype=torch.long)
            more = list(number)[len(rows) :]
        return _Notes({}, other, torch.tensor(more, dtype=torch.long))

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
            self._store(found, self._null(stacked, found, known, notes.other), targets, batch)

    def _null(self, stacked: Tensor, found: Statistics, targets: Tensor, other: Tensor) -> Tensor:
        """[layers, rows, n]: log-prob of each row's target under the state half a prompt away (same layer)."""
        n, total = len(other), found.logsumexp
        if stacked.shape[1] > n:
            total = torch.cat([total, self._readout.read(stacked[:, n:], self._k).logsumexp], 1)
        alone = (other == torch.arange(n)).to(stacked.device)
        other = other.to(stacked.device)
        rows = torch.stack([self._readout.logits_at(layer[other], targets) for layer in stacked])
        null = logprob(rows, total[:, other, None])
        null[:, alone] = torch.nan  # a prompt of one position has no other state
        return null

    def _store(self, found: Statistics, null: Tensor, targets: Tensor, batch: Batch) -> None:
        p, s = batch.prompt.numpy(), batch.slot.numpy()
        missing = (targets < 0).cpu().numpy()
        values = {
            "token_id": found.token_id,
            "logprob": found.logprob,
            "entropy": found.entropy,
            "kl_to_final": found.kl,
            "target_rank": found.rank,
            "target_logprob": found.target_logprob,
            "target_logprob_null": null,
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
        kind = "given" if self._followed.ids is not None else self.targets or "final"
        data = self._run.dataset(
            {**variables, **labels},
            {axis: [s.index for s in self._wanted], "rank": np.arange(self._k), **coords},
            reader="LogitLens", at=self.at, target=kind,
        )  # fmt: skip
        settings = {
            "name": "LogitLens", "at": self.at, "top_k": self._k, "precision": self.precision,
            "kl": "KL(final || layer), nats", "null": "target under the state half a prompt away, same layer",
        }  # fmt: skip
        return Reading(data, {"reader": settings})


@dataclass
class _Notes:
    """What is kept of a batch until its last site.

    features: for each site [selected + more, f].  other: [selected] which of these rows is the null of each.
    more: flat index of the rows that are there for a null alone.
    """

    features: dict[Site, Tensor]
    other: Tensor
    more: Tensor
