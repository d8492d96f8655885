"""The logit lens: read any state as if it were the last one (nostalgebraist, 2020).

A state goes through the model's own final norm and unembedding, softcap and scales included.  At ``resid``
this asks what the model would say if it stopped at that layer; at ``attn_out`` and ``mlp_out`` it asks what
that part's own vector points to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import InputError
from workbench.readout import Readout, Statistics
from workbench.sites import Site, resolve
from workbench.tokens import token_texts

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.reader import Run
    from workbench.reading import Reading

Targets = None | str | int | Iterable[str | int]


class LogitLens:
    """Top tokens, log-probabilities, entropy, KL to the final layer, and rank of targets at every depth.

    Args:
        layers: which layers of the residual stream (0..L); with another ``at``, which blocks.  None: all.
        top_k: how many tokens to keep at each place.
        targets: whose rank and log-probability to follow.  None: what the model says in the end (its own top
            token at that position); "next": the prompt's own next token; otherwise a token (text or id) or a
            list of them, which adds the dimension ``target``.
        at: "resid", "resid_mid", "attn_out" or "mlp_out".
        compare: compare with the final layer (``kl_to_final``).  False lets a pass stop at the deepest layer
            asked for.
        precision: "fp32", or "bf16" for a faster product with an fp32 re-rank of the best candidates.

    The reading's variables, in natural logarithms (nats); ``layer`` is ``block`` unless ``at="resid"``:
        token_id, logprob                [prompt, layer, position, rank]
        entropy, kl_to_final             [prompt, layer, position]; KL(final || this layer), as in the tuned lens
        target_rank (0 = top), target_logprob   [prompt, layer, position] (+ target)
        target_logprob_null              the same target under a state of another position of the same prompt and
                                         layer: what any state here gives that token (the control)
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
        self._fixed = target_ids(model, self.targets)
        self._listed = self._fixed is not None and not isinstance(self.targets, (str, int))
        depth, count = len(self._wanted), 1 if self._fixed is None else len(self._fixed)
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
        self._target_id = run.empty([], np.int32)

    def observe(self, site: Site, states: Tensor, batch: Batch) -> None:
        notes = batch.scratch.setdefault(self, {})
        # Only the normed rows are kept: the states themselves belong to the model.
        notes[site] = self._readout.features(batch.take(states))
        if len(notes) == len(self._wanted) + (self.compare and self._final not in self._wanted):
            self._read(notes, batch)
            notes.clear()

    def _read(self, notes: dict[Site, Tensor], batch: Batch) -> None:
        readout, wanted = self._readout, list(self._wanted)
        final = readout.final(notes[self._final], self._k) if self.compare else None
        targets = self._batch_targets(batch, final.statistics if final else None)
        if self._fixed is None:
            self._target_id[batch.prompt.numpy(), batch.slot.numpy()] = targets[:, 0].cpu().numpy()
        known = targets.clamp_min(0)
        if wanted:
            features = [notes.pop(site) if site != self._final else notes[site] for site in wanted]
            stacked = torch.stack(features)
            del features
            found = readout.read(stacked, self._k, final=final, targets=known)
            null = self._null(stacked, found, known, batch)
            self._store(found, null, targets, batch)

    def _batch_targets(self, batch: Batch, final: Statistics | None) -> Tensor:
        """[rows, n] target ids; -1 where there is none (no next token)."""
        device = self._readout.weight.device
        if self._fixed is not None:
            return torch.tensor(self._fixed, device=device).expand(len(batch), -1)
        if self.targets == "next":
            following = []
            for p, s in zip(batch.prompt.tolist(), batch.slot.tolist(), strict=True):
                prompt = self._run.prompts[p]
                place = prompt.positions[s] + 1
                following.append(prompt.ids[place] if place < len(prompt.ids) else -1)
            return torch.tensor(following, device=device)[:, None]
        assert final is not None
        return final.token_id[0, :, :1]

    def _null(self, stacked: Tensor, found: Statistics, targets: Tensor, batch: Batch) -> Tensor:
        """[layers, rows, n]: log-prob of each row's target under the state half a prompt away (same layer)."""
        other = torch.arange(len(batch))
        for p in batch.prompt.unique().tolist():
            mine = (batch.prompt == p).nonzero()[:, 0]
            other[mine] = mine.roll(-(len(mine) // 2))
        alone = (other == torch.arange(len(batch))).to(stacked.device)
        other = other.to(stacked.device)
        rows = torch.stack([self._readout.logits_at(layer[other], targets) for layer in stacked])
        null = rows - found.logsumexp[:, other, None]
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
            elif self._listed:
                variables[name] = ((*dims, "target"), array)
            else:
                variables[name] = (dims, array[..., 0])
        coords: dict[str, Any] = {axis: [s.index for s in self._wanted], "rank": np.arange(self._k)}
        if self._fixed is None:
            variables["target_id"] = (("prompt", "position"), self._target_id)
        elif self._listed:
            variables["target_id"] = (("target",), np.array(self._fixed, np.int32))
            coords["target"] = np.array(token_texts(self._run.model.tokenizer, self._fixed), dtype=object)
        else:
            same = np.where(self._run.empty(dtype=np.int32) == -1, self._fixed[0], 0).astype(np.int32)
            variables["target_id"] = (("prompt", "position"), same)
        kind = self.targets if isinstance(self.targets, str) and self._fixed is None else "final"
        data = self._run.dataset(
            variables, coords, reader="LogitLens", at=self.at, target="given" if self._fixed else kind
        )
        settings = {
            "name": "LogitLens", "at": self.at, "top_k": self._k, "precision": self.precision,
            "kl": "KL(final || layer), nats", "null": "target under the state half a prompt away, same layer",
        }  # fmt: skip
        return Reading(data, {"reader": settings})


def target_ids(model: Model, targets: Targets) -> list[int] | None:
    """Token ids for chosen targets; None when they depend on the position ("next", or the final top token).

    Raises InputError for a text that is not exactly one token, and for an id outside the vocabulary.
    """
    if targets is None or targets == "next":
        return None
    listed = [targets] if isinstance(targets, (str, int)) else list(targets)
    if not listed:
        raise InputError("targets is an empty list. Give at least one token, 'next', or None.")
    return [_target_id(model, t) for t in listed]


def _target_id(model: Model, target: str | int) -> int:
    if isinstance(target, (int, np.integer)):
        if not 0 <= target < model.vocab_size:
            raise InputError(f"Target id {target} is outside the vocabulary 0 to {model.vocab_size - 1}.")
        return int(target)
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer, so the target {target!r} needs to be a token id.")
    ids = model.tokenizer(target, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = token_texts(model.tokenizer, ids)
        raise InputError(
            f"The target {target!r} is {len(ids)} tokens {pieces}, and a rank belongs to one. Give one of them, "
            "mind the leading space (' word' and 'word' are different tokens), or give an id."
        )
    return int(ids[0])
