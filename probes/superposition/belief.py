"""What a model believes of a set of candidates: in each state, and as whole names of several tokens."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.engine.hooks import neutral, untouched
from workbench.errors import InputError
from workbench.inputs import encode, in_head, one_token, text_ids
from workbench.reading import Reading
from workbench.readout import Readout
from workbench.sites import Site, resolve
from workbench.tokens import token_texts, unknown_id

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.reader import Run

Candidates = Sequence[str | int] | Sequence[Sequence[str | int]]


class CandidateBelief:
    """A reader: the distribution over declared candidates that the logit lens finds in every state.

    Args:
        candidates: one list for all prompts, or one for each: tokens as texts or ids.  Of a text of several tokens the
            first stands for it (arXiv 2604.06374, its layer-wise belief); :func:`entity_belief` has whole names.
        layers: of the residual stream; None: all.
        mass: also read how much of the whole vocabulary's probability the candidates have, and its first choice.

    The reading's variables; NaN: no such candidate:
        logit, belief [prompt, layer, position, candidate]: belief = softmax of the logits over the candidates.
        entropy_bits, effective [prompt, layer, position]: of belief, and 2 to its power, the number of candidates that
            an even belief of that entropy would hold.
        mass, first_id [prompt, layer, position]: with mass=True.
        candidate_id, candidate_name [prompt, candidate]

    Raises InputError for candidates that are no token of the model, or whose first tokens are the same.
    """

    def __init__(
        self, candidates: Candidates, layers: int | Iterable[int] | None = None, *, mass: bool = False
    ) -> None:
        self.candidates, self.layers, self.mass = candidates, layers, mass

    def sites(self, model: Model) -> list[Site]:
        self._wanted = resolve(model, "resid", self.layers)
        return self._wanted

    def begin(self, run: Run) -> None:
        self._run, model = run, run.model
        lists = for_prompts(self.candidates, len(run.prompts))
        self._names = [[str(c) if isinstance(c, str) else "" for c in own] for own in lists]
        self._ids = [[pieces(model, c)[0] for c in own] for own in lists]
        for i, own in enumerate(self._ids):
            if len(set(own)) < len(own):
                twice = next(x for x in own if own.count(x) > 1)
                same = [str(c) for c, x in zip(lists[i], own, strict=True) if x == twice]
                raise InputError(
                    f"The candidates {', '.join(same)} of prompt {i} begin with the same token "
                    f"{token_texts(model.tokenizer, [twice])[0]!r}, which cannot tell them apart. Use entity_belief."
                )
        self._width = max(map(len, self._ids))
        self._readout = Readout(model)
        self._logit = run.empty([len(self._wanted)], after=[self._width])
        self._mass, self._first = run.empty([len(self._wanted)]), run.empty([len(self._wanted)], np.int32)

    def observe(self, site: Site, states: Tensor, batch: Batch) -> None:
        features = self._readout.features(batch.take(states))
        own = [self._ids[p] for p in batch.prompt.tolist()]
        ids = torch.tensor([[*x, *[x[0]] * (self._width - len(x))] for x in own], device=features.device)
        logit = self._readout.logits_at(features, ids).cpu().numpy()
        there = np.arange(self._width) < np.array([len(x) for x in own])[:, None]
        logit = np.where(there, logit, np.nan)
        depth, p, s = self._wanted.index(site), batch.prompt.numpy(), batch.slot.numpy()
        self._logit[p, depth, s] = logit
        if not self.mass:
            return
        # The whole vocabulary is read once for all layers.
        notes = batch.scratch.setdefault(self, {})
        notes[site] = features
        if len(notes) == len(self._wanted):
            whole = self._readout.read(torch.stack([notes[x] for x in self._wanted]), 1)
            notes.clear()
            total = whole.logsumexp.T.cpu().numpy()
            self._mass[p, :, s] = np.nansum(np.exp(self._logit[p, :, s] - total[..., None]), -1)
            self._first[p, :, s] = whole.token_id[..., 0].T.cpu().numpy()

    def end(self) -> Reading:
        dims = ("prompt", "layer", "position")
        names = np.full((len(self._ids), self._width), "", object)
        ids = np.full(names.shape, -1, np.int32)
        for i, (own, called) in enumerate(zip(self._ids, self._names, strict=True)):
            texts = token_texts(self._run.model.tokenizer, own)
            names[i, : len(own)] = [name or text for name, text in zip(called, texts, strict=True)]
            ids[i, : len(own)] = own
        belief = normalised(self._logit)
        bits = entropy_bits(belief)
        variables: dict[str, Any] = {
            "logit": ((*dims, "candidate"), self._logit), "belief": ((*dims, "candidate"), belief),
            "entropy_bits": (dims, bits), "effective": (dims, 2**bits),
            "candidate_id": (("prompt", "candidate"), ids), "candidate_name": (("prompt", "candidate"), names),
        }  # fmt: skip
        if self.mass:
            variables["mass"], variables["first_id"] = (dims, self._mass), (dims, self._first)
        coords = {"layer": [s.index for s in self._wanted], "candidate": np.arange(self._width)}
        data = self._run.dataset(variables, coords, reader="CandidateBelief")
        return Reading(data, {"reader": {"name": "CandidateBelief", "mass": self.mass}})


def normalised(logit: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, over what is there (NaN: nothing)."""
    highest = np.nanmax(np.where(np.isnan(logit), -np.inf, logit), -1, keepdims=True)
    p = np.exp(logit - np.where(np.isfinite(highest), highest, 0))
    total = np.nansum(p, -1, keepdims=True)
    return np.divide(p, total, out=np.full(p.shape, np.nan), where=total > 0)


def entropy_bits(belief: np.ndarray) -> np.ndarray:
    """[..., candidate] -> bits; NaN where there is no candidate."""
    some = ~np.isnan(belief).all(-1)
    bits = -np.nansum(belief * np.log2(np.where(belief > 0, belief, 1)), -1)
    return np.where(some, bits, np.nan)


def for_prompts(candidates: Candidates, prompts: int) -> list[list[str | int]]:
    """One list of candidates for each prompt."""
    given = list(candidates)
    if not given:
        raise InputError("There are no candidates, so there is no belief to read.")
    if isinstance(given[0], (str, int, np.integer)):
        return [list(given)] * prompts  # type: ignore[list-item]
    if len(given) != prompts:
        raise InputError(f"candidates has {len(given)} lists and there are {prompts} prompts. Give one for each.")
    if any(not len(own) for own in given):  # type: ignore[arg-type]
        raise InputError("A prompt has no candidates, so there is no belief to read.")
    return [list(own) for own in given]  # type: ignore[arg-type]


def pieces(model: Model, candidate: str | int) -> list[int]:
    """The token ids of a candidate: one where there is a token of that text, as of a lens's targets.

    Raises InputError where the vocabulary does not have it."""
    if not isinstance(candidate, str):
        return [in_head(model, int(candidate), "A candidate")]
    what = f"The candidate {candidate!r}"
    found = one_token(model, candidate, what)
    ids = text_ids(model, candidate, what) if found is None else [found]
    if not ids or (found is None and unknown_id(model.tokenizer) in ids):
        raise InputError(f"{what} is not in the vocabulary of {model.name}.")
    return [in_head(model, i, what) for i in ids]


@neutral()
def entity_belief(
    model: Model,
    inputs: Any,
    entities: Candidates,
    *,
    thoughts: np.ndarray | None = None,
    then: str | Sequence[int] | None = None,
    batch_size: int = 16,
) -> xr.Dataset:
    """Belief in names of several tokens: P(name) = product of its tokens' probabilities, each behind those before it.

    Args:
        entities: texts (mind the leading space), one list for all prompts or one for each.
        thoughts: [prompt, thought, width] as they were fed (``Thoughts.vectors``; NaN: none); None: the prompt alone.
        then: tokens fed after the thoughts; the names are then read behind them, too.

    Returns:
        logprob [prompt, position, candidate] in nats, belief: normalised over the names, entropy_bits, effective, and
        mass [prompt, position], the sum of P.  position counts places: 0 is the prompt's last token, then thoughts,
        then ``then``.  P is that a name begins here; a name that begins with the whole of another is refused, since the
        shorter would hold the longer.
    """
    from probes.superposition.thoughts import _proved, _tokens

    _proved(model)
    prompts, after = encode(model, inputs, "last"), _tokens(model, then)
    lists = for_prompts(entities, len(prompts))
    names = [[tuple(pieces(model, c)) for c in own] for own in lists]
    for i, own in enumerate(names):
        for a in own:
            for b in own:
                if a is not b and a == b[: len(a)]:
                    raise InputError(
                        f"Of prompt {i}, one name begins with the whole of another ({token_texts(model.tokenizer, a)}, "
                        f"{token_texts(model.tokenizer, b)}): their probabilities overlap. Add what ends a name (a "
                        "full stop)."
                    )
    n = 0 if thoughts is None else thoughts.shape[1]
    need = max(len(p.ids) for p in prompts) + n + len(after) + max(len(x) for own in names for x in own) - 1
    if model.context_length is not None and need > model.context_length:
        raise InputError(
            f"Prompt, thoughts and the longest name take {need} tokens, and {model.name} reads at most "
            f"{model.context_length}. Cut the prompt, or think less."
        )
    width = max(map(len, names))
    found = np.full((len(prompts), n + 1 + len(after), width), np.nan)
    table = model.module.get_input_embeddings()
    with untouched(model.module):
        for i, prompt in enumerate(prompts):
            own = table(torch.tensor([prompt.ids], device=model.device))
            given = 0
            if thoughts is not None:
                given = int((~np.isnan(thoughts[i]).any(-1)).sum())
                fed = torch.as_tensor(thoughts[i, :given], dtype=own.dtype, device=own.device)
                own = torch.cat([own, fed[None]], 1)
            if after:
                own = torch.cat([own, table(torch.tensor([after], device=own.device))], 1)
            first = len(prompt.ids)
            places = [*range(given + 1), *range(n + 1, n + 1 + len(after))]
            for j, place in enumerate(places):
                head = own[:, : first + j]
                found[i, place, : len(names[i])] = _names(model, head, names[i], batch_size)
    belief = normalised(found)
    bits = entropy_bits(belief)
    dims = ("prompt", "position")
    called = np.full((len(prompts), width), "", object)
    for i, own in enumerate(lists):
        called[i, : len(own)] = [str(c) for c in own]
    return xr.Dataset(
        {
            "logprob": ((*dims, "candidate"), found), "belief": ((*dims, "candidate"), belief),
            "entropy_bits": (dims, bits), "effective": (dims, 2**bits),
            "mass": (dims, np.where(np.isnan(bits), np.nan, np.nansum(np.exp(found), -1))),
            "candidate_name": (("prompt", "candidate"), called),
        },
        {"prompt": np.arange(len(prompts)), "position": np.arange(found.shape[1]), "candidate": np.arange(width)},
        {"model": model.name},
    )  # fmt: skip


def _names(model: Model, head: Tensor, names: list[tuple[int, ...]], batch_size: int) -> np.ndarray:
    """[names] log-probability that each follows ``head`` [1, length, width]: every shared beginning is run once."""
    table, takes = model.module.get_input_embeddings(), inspect.signature(model.module.forward).parameters
    begun = sorted({name[:k] for name in names for k in range(len(name))}, key=lambda x: (len(x), x))
    after: dict[tuple[int, ...], Tensor] = {}
    for length in sorted({len(x) for x in begun}):
        same = [x for x in begun if len(x) == length]
        for lo in range(0, len(same), batch_size):
            some = same[lo : lo + batch_size]
            rows = head.expand(len(some), -1, -1)
            if length:
                rows = torch.cat([rows, table(torch.tensor(some, device=head.device))], 1)
            given = {k: v for k, v in (("logits_to_keep", 1), ("use_cache", False)) if k in takes}
            logits = model.module(inputs_embeds=rows, **given).logits[:, -1].float().log_softmax(-1)
            after.update(zip(some, logits, strict=True))
    return np.array([sum(float(after[name[:k]][name[k]]) for k in range(len(name))) for name in names])
