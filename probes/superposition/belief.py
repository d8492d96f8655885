"""What a model believes of a set of candidates: in each state, and as whole names of several tokens."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probes.results import ran
from probes.superposition.thoughts import takes_embeddings, token_ids
from workbench.anatomy import accepted
from workbench.engine.drivers import Hooks, Pass
from workbench.engine.hooks import neutral, run
from workbench.engine.run import observe
from workbench.errors import InputError
from workbench.inputs import Batch, Prompt, collate, encode, in_head, one_token, text_ids
from workbench.readers import Found, Layers, Output, Plan, Reader, Rows, Run
from workbench.reading import Reading, derived
from workbench.readout import Readout
from workbench.sites import Site, resolve
from workbench.stats import entropy
from workbench.tokens import token_texts, unknown_id
from workbench.variables import about, described

if TYPE_CHECKING:
    from workbench.model import Model

Candidates = Sequence[str | int] | Sequence[Sequence[str | int]]
VARIABLES = {
    "logit": about("logit of the candidate", "nats", "high"),
    "logprob": about("log-probability of the name", "nats", "high"),
    "belief": about("belief in the candidate", better="high"),
    "entropy_bits": about("entropy of belief", "bits"),
    "effective": about("candidates held", "candidates"),
    "mass": about("probability of all candidates together", better="high"),
    "first_id": about("first choice of the whole vocabulary", role="label", of="mass"),
    "candidate_id": about("token id of the candidate", role="label", of="belief"),
    "candidate_name": about("candidate", role="label", of="belief"),
}


@dataclass(frozen=True, eq=False)
class CandidateBelief(Reader):
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

    candidates: Candidates
    layers: Layers = None
    _: KW_ONLY
    mass: bool = False

    def plan(self, run: Run) -> Plan:
        model, wanted = run.model, resolve(run.model, "resid", self.layers)
        lists = for_prompts(self.candidates, len(run.prompts))
        chosen = [[pieces(model, c)[0] for c in own] for own in lists]
        for i, own in enumerate(chosen):
            if len(set(own)) < len(own):
                twice = next(x for x in own if own.count(x) > 1)
                same = [str(c) for c, x in zip(lists[i], own, strict=True) if x == twice]
                raise InputError(
                    f"The candidates {', '.join(same)} of prompt {i} begin with the same token "
                    f"{token_texts(model.tokenizer, [twice])[0]!r}, which cannot tell them apart. Use entity_belief."
                )
        width, readout = max(map(len, chosen)), Readout(model)
        ids = np.full((len(chosen), width), -1, np.int32)
        names = np.full(ids.shape, "", object)
        for i, (own, called) in enumerate(zip(chosen, lists, strict=True)):
            ids[i, : len(own)] = own
            texts = token_texts(model.tokenizer, own)
            names[i, : len(own)] = [c if isinstance(c, str) and c else t for c, t in zip(called, texts, strict=True)]

        def observe(states: Rows, batch: Batch) -> dict[str, Any]:
            features = torch.stack([readout.features(states[site]) for site in wanted])
            own = torch.from_numpy(ids[batch.prompt.numpy()]).long().to(features.device)
            logit = torch.stack([readout.logits_at(x, own.clamp_min(0)) for x in features], 1)
            logit = logit.masked_fill((own < 0)[:, None], torch.nan)
            found: dict[str, Any] = {"logit": logit}
            if self.mass:
                whole = readout.read(features, 1)
                found["mass"] = torch.nansum((logit - whole.logsumexp.T[..., None]).exp(), -1)
                found["first_id"] = whole.token_id[..., 0].T
            return found

        dims = ("prompt", "layer", "position")
        outputs = {"logit": Output((*dims, "candidate"))}
        if self.mass:
            outputs |= {"mass": Output(dims), "first_id": Output(dims, dtype=np.int32)}

        def finish(found: Found) -> dict[str, Any]:
            belief = normalised(found["logit"])
            bits = entropy_bits(belief)
            return {
                "belief": ((*dims, "candidate"), belief), "entropy_bits": (dims, bits), "effective": (dims, 2**bits),
                "candidate_id": (("prompt", "candidate"), ids), "candidate_name": (("prompt", "candidate"), names),
            }  # fmt: skip

        coords = {"layer": [site.index for site in wanted], "candidate": width}
        return Plan(wanted, outputs, observe, coords, finish, VARIABLES)


def normalised(logit: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, over what is there (NaN: nothing)."""
    highest = np.nanmax(np.where(np.isnan(logit), -np.inf, logit), -1, keepdims=True)
    p = np.exp(logit - np.where(np.isfinite(highest), highest, 0))
    total = np.nansum(p, -1, keepdims=True)
    return np.divide(p, total, out=np.full(p.shape, np.nan), where=total > 0)


def entropy_bits(belief: np.ndarray) -> np.ndarray:
    """[..., candidate] -> bits; NaN where there is no candidate."""
    some = ~np.isnan(belief).all(-1)
    return np.where(some, entropy(np.nan_to_num(belief)) / np.log(2), np.nan)


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
) -> Reading:
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
    takes_embeddings(model)
    prompts, after = encode(model, inputs, "last"), token_ids(model, then)
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
    for i, prompt in enumerate(prompts):
        given = 0 if thoughts is None else int((~np.isnan(thoughts[i]).any(-1)).sum())
        fed: Any = None if thoughts is None else thoughts[i, :given]
        # Every place and every beginning of a name is a sequence of its own; shared beginnings are run once.
        begun = sorted({name[:k] for name in names[i] for k in range(len(name))}, key=lambda x: (len(x), x))
        places = [*range(given + 1), *range(n + 1, n + 1 + len(after))]
        sequences = [(j, own) for j in range(len(places)) for own in begun]
        logprob = _continued(model, prompt, fed, [[*after[: max(0, j - given)], *own] for j, own in sequences], [
            min(j, given) for j, _ in sequences
        ], sorted({name[k] for name in names[i] for k in range(len(name))}), batch_size)  # fmt: skip
        said = dict(zip(sequences, logprob, strict=True))
        for j, place in enumerate(places):
            found[i, place, : len(names[i])] = [
                sum(said[j, name[:k]][name[k]] for k in range(len(name))) for name in names[i]
            ]
    belief = normalised(found)
    bits = entropy_bits(belief)
    dims = ("prompt", "position")
    called = np.full((len(prompts), width), "", object)
    for i, own in enumerate(lists):
        called[i, : len(own)] = [str(c) for c in own]
    table = xr.Dataset(
        {
            "logprob": ((*dims, "candidate"), found), "belief": ((*dims, "candidate"), belief),
            "entropy_bits": (dims, bits), "effective": (dims, 2**bits),
            "mass": (dims, np.where(np.isnan(bits), np.nan, np.nansum(np.exp(found), -1))),
            "candidate_name": (("prompt", "candidate"), called),
        },
        {"prompt": np.arange(len(prompts)), "position": np.arange(found.shape[1]), "candidate": np.arange(width)},
    )  # fmt: skip
    settings = {"thoughts": n, "then": then if isinstance(then, str) or then is None else list(then)}
    return derived("superposition.entity_belief", described(table, VARIABLES), ran(model, prompts), **settings)


def _continued(
    model: Model, prompt: Prompt, thoughts: np.ndarray | None, tails: list[list[int]], fed: list[int],
    ids: list[int], batch_size: int,
) -> list[dict[int, float]]:  # fmt: skip
    """Log-probability (nats) of each of ``ids`` behind the prompt, so many of its thoughts, and a tail of tokens."""
    known = [Prompt([*prompt.ids, *[prompt.ids[-1]] * k, *tail], "") for k, tail in zip(fed, tails, strict=True)]
    for own in known:
        own.positions = [len(own.ids) - 1]
    site, readout = Site("resid", model.n_layers), Readout(model)

    def look(states: Rows, batch: Batch) -> dict[str, Tensor]:
        features = readout.features(states[site])
        chosen = torch.tensor(ids, device=features.device).expand(len(features), -1)
        logits, total = readout.logits_at(features, chosen), readout.read(features[None], 1).logsumexp[0]
        return {"logprob": logits.double() - total.double()[:, None]}

    plan = Plan([site], {"logprob": Output(("prompt", "token"), dtype=np.float64)}, look, {"token": len(ids)})
    drives = _Fed(model, known, len(prompt.ids), thoughts, fed)
    found = observe(model, known, plan, drives, batch_size=batch_size)["logprob"]
    return [dict(zip(ids, row.tolist(), strict=True)) for row in found]


class _Fed(Hooks):
    """Whole sequences in which thoughts stand in the place of tokens' embeddings, behind ``begin`` tokens."""

    def __init__(
        self, model: Model, prompts: list[Prompt], begin: int, thoughts: np.ndarray | None, fed: list[int]
    ) -> None:
        super().__init__(model, prompts)
        self.begin, self.thoughts, self.fed = begin, thoughts, fed

    def passes(self, members: list[int]) -> Generator[Pass, Any, None]:
        batch = collate(self.model, self.prompts, members)
        rows = self.model.module.get_input_embeddings()(batch.inputs["input_ids"])
        for row, i in enumerate(members):
            if self.thoughts is not None and self.fed[i]:
                own = torch.as_tensor(self.thoughts[: self.fed[i]], dtype=rows.dtype, device=rows.device)
                rows[row, self.begin : self.begin + self.fed[i]] = own
        inputs = {**batch.inputs, "inputs_embeds": rows, "use_cache": False}
        del inputs["input_ids"]
        yield Pass(batch, lambda: run(self.model.module, accepted(self.model.module, inputs)))
