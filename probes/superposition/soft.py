"""Does a mixture of tokens do anything that its largest token does not?  One place, every layer compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probes.results import family, ran
from probes.superposition.thoughts import Given, SoftThought, Thoughts, mixed, think
from workbench.engine.hooks import neutral
from workbench.inputs import Batch, Prompt, encode
from workbench.model import Model
from workbench.readers import Output, Plan, Reader, Rows, Run, States
from workbench.reading import Reading, derived
from workbench.readout import Readout
from workbench.sites import Site
from workbench.stats import Design
from workbench.variables import about, described

ENDS, EACH = ("low", "high"), ("value", "{}, by prompt")
BOUNDS = {"kl": (0, np.inf), "entropy": (0, np.inf), "cosine": (-1, 1)}
VARIABLES = {
    **family("kl", about("KL from the mixture", "nats"), *ENDS, each=EACH),
    **family("cosine", about("cosine with the state of the mixture"), *ENDS, each=EACH),
    **family("kl_second", about("KL from the mixture, second token", "nats"), *ENDS, each=EACH),
    **family("cosine_second", about("cosine with the state of the mixture, second token"), *ENDS, each=EACH),
    **family("entropy_soft", about("entropy at the mixture", "nats"), *ENDS, each=EACH),
    **family("entropy_hard", about("entropy at its largest token", "nats"), *ENDS, each=EACH),
    "mixture_entropy": about("entropy of the mixture", "nats"),
    "weight": about("weight of the largest token"),
}
MIXTURE_VARIABLES = {
    **family("entropy", about("entropy behind the mixture", "nats"), *ENDS, each=EACH),
    "entropy_even": about("entropy of an even distribution", "nats", "", "chance", "entropy"),
}


@neutral()
def soft_versus_hard(
    model: Model,
    inputs: Any,
    policy: SoftThought | None = None,
    *,
    batch_size: int | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """The next thought fed as the mixture, as its largest token alone, and as its second (arXiv 2604.06374).

    Returns, by layer, means over prompts with intervals (_low, _high):
        kl [layer]: KL(soft || hard) of the logit lens's distributions at the thought, in nats; cosine of the states.
        kl_second, cosine_second: soft beside the second token of the mixture, over prompts whose mixture has one: how
            far apart another token is.  Near 0 beside it, the mixture goes the way of its largest token.
        entropy_soft, entropy_hard [layer]: of the lens's distributions, in nats.
        kl_each, cosine_each [prompt, layer]; mixture_entropy [prompt] in nats; weight [prompt], of the largest token.
    """
    policy = policy or SoftThought(1)
    policy = replace(policy, n=1)
    soft = think(model, inputs, policy, readers=[States()], batch_size=batch_size, seed=seed)
    weight: np.ndarray = soft.data["weight"].values[:, 0]
    order = np.argsort(-np.nan_to_num(weight), 1, kind="stable")  # noise may have put another token first
    weight = np.take_along_axis(weight, order, 1)
    ids = torch.as_tensor(np.take_along_axis(soft.data["token_id"].values[:, 0], order, 1), device=model.device).long()
    states = {"soft": _kept(soft)}
    for rank, name in enumerate(("hard", "second")):
        at = min(rank, ids.shape[1] - 1)
        rows = mixed(model, ids[:, at : at + 1].clamp_min(0), torch.ones(len(ids), 1, device=ids.device))
        given = Given(rows.detach().float().cpu().numpy()[:, None])
        states[name] = _kept(think(model, inputs, given, readers=[States()], batch_size=batch_size, seed=seed))
    readout, found, said = Readout(model), {}, ""
    prompts = encode(model, inputs, "last")
    design = _design(prompts)
    for name, other in (("", states["hard"]), ("_second", states["second"])):
        kl, cosine, own, theirs = np.zeros((4, *other.shape[:2]))
        for layer in range(other.shape[1]):
            a, b = (x[:, layer].to(model.device) for x in (states["soft"], other))
            final = readout.final(readout.features(a), 1)
            read = readout.read(readout.features(b)[None], 1, final=final)
            assert read.kl is not None
            kl[:, layer], theirs[:, layer] = read.kl[0].cpu().numpy(), read.entropy[0].cpu().numpy()
            own[:, layer] = final.statistics.entropy[0].cpu().numpy()
            cosine[:, layer] = torch.cosine_similarity(a.float(), b.float(), dim=-1).cpu().numpy()
        if name:
            alone = ~(weight[:, 1] > 0) if weight.shape[1] > 1 else np.ones(len(weight), bool)
            kl[alone], cosine[alone] = np.nan, np.nan
        named = {f"kl{name}": kl, f"cosine{name}": cosine}
        if not name:
            named |= {"entropy_soft": own, "entropy_hard": theirs}
        for what, values in named.items():
            where = design.bootstrap(values, level=level, draws=draws, seed=seed, bounds=BOUNDS[what.partition("_")[0]])
            for end, value in (("", where.value), ("_low", where.low), ("_high", where.high)):
                found[what + end] = ("layer", value)
            found[f"{what}_each"], said = (("prompt", "layer"), values), said or where.said("prompts")
    found["mixture_entropy"] = ("prompt", soft.data["mixture_entropy"].values[:, 0])
    found["weight"] = ("prompt", weight[:, 0])
    attrs = {"chart": "soft", "interval": said}
    data = described(xr.Dataset(found, {"layer": np.arange(model.n_layers + 1)}, attrs), VARIABLES)
    asked = {"policy": repr(policy), "draws": draws, "level": level, "seed": seed}
    return derived("superposition.soft_versus_hard", data, ran(model, prompts), **asked)


def mixture_entropy(
    model: Model,
    inputs: Any,
    sizes: Any = (1, 2, 4, 8, 16),
    *,
    mixtures: int = 8,
    batch_size: int | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Entropy of the next-token distribution behind an even mixture of k random tokens, for growing k (its test f).

    entropy [size] in nats with interval over prompts; entropy_each [size, prompt], mean of ``mixtures`` of them;
    entropy_even: ln of the vocabulary.  A model that holds k tokens at once grows more undecided with k; one that does
    not is as sure as of one.  Compare checkpoints, and a random initialisation.
    """
    from probes.superposition.thoughts import ForcedMixture

    sizes, rng = [int(k) for k in sizes], np.random.default_rng(seed)
    found = []
    for k in sizes:
        each = []
        for _ in range(mixtures):
            chosen = rng.choice(
                min(model.vocab_size, len(model.token_vectors)), k, replace=False
            )
            policy = ForcedMixture([chosen.tolist()])
            thoughts = think(model, inputs, policy, readers=[_Entropy()], batch_size=batch_size, seed=seed)
            each.append(thoughts.readings[0].data["entropy"].values[:, 1])
        found.append(np.mean(each, 0))
    values, prompts = np.stack(found), encode(model, inputs, "last")
    where = _design(prompts).bootstrap(values.T, level=level, draws=draws, seed=seed, bounds=(0, np.inf))
    table = xr.Dataset(
        {
            "entropy": ("size", where.value), "entropy_low": ("size", where.low), "entropy_high": ("size", where.high),
            "entropy_each": (("size", "prompt"), values), "entropy_even": float(np.log(model.vocab_size)),
        },
        {"size": sizes},
        {"chart": "mixtures", "interval": where.said("prompts")},
    )  # fmt: skip
    asked = {"mixtures": mixtures, "draws": draws, "level": level, "seed": seed}
    source = ran(model, prompts)
    return derived("superposition.mixture_entropy", described(table, MIXTURE_VARIABLES), source, **asked)


@dataclass(frozen=True, eq=False)
class _Entropy(Reader):
    """Entropy (nats) of the last layer's distribution [prompt, position]."""

    def plan(self, run: Run) -> Plan:
        site, readout = Site("resid", run.model.n_layers), Readout(run.model)

        def observe(states: Rows, batch: Batch) -> dict[str, Tensor]:
            return {"entropy": readout.read(readout.features(states[site])[None], 1).entropy[0]}

        return Plan([site], {"entropy": Output(("prompt", "position"), about("entropy", "nats"))}, observe)


def _design(prompts: Sequence[Prompt]) -> Design:
    """Prompts are what was sampled; the same prompt twice is one."""
    return Design(clusters=[f"{i if p.extras else ''}{p.ids}" for i, p in enumerate(prompts)])


def _kept(thoughts: Thoughts) -> Tensor:
    """[prompt, layer, width]: the states at the first thought."""
    return torch.from_numpy(thoughts.readings[0].data["state"].values[:, :, 1])
