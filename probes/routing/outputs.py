"""What experts say, and how loudly: the size of what each adds, and the words that it points to.

A router's choice says nothing of what an expert then writes.  The output f(x) of one expert is found by calling the
block's own experts again on the same states with one slot at a time and the weight 1; that the slots' outputs, times
their weights, make up what the block's experts gave is proved for every block on the first batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from probes.results import family, ran
from probes.routing.duplicates import near_duplicates, said
from probes.routing.measures.documents import intervals
from probes.routing.tracer import document_labels, numbered
from workbench.anatomy.moe import Call, MoE, moe_of
from workbench.engine.hooks import neutral, tensors
from workbench.engine.run import observe as observed
from workbench.errors import InputError, Refused
from workbench.inputs import Batch, encode
from workbench.readers import Output, Plan, Rows, Tap
from workbench.reading import Reading, derived
from workbench.readout import Readout
from workbench.stats import Design, js_divergence, over, p_value
from workbench.variables import about, described

if TYPE_CHECKING:
    from workbench.model import Model

Blocks = int | Iterable[int] | None
ENDS, SIZE = ("low", "high"), "units of the stream"
JSD = "divergence of the expert's words from its block's"
VARIABLES = {
    **family("reap", about("mean weighted length of the expert's output", SIZE), *ENDS),
    **family("norm", about("mean length of the expert's output", SIZE), *ENDS),
    "total": about("summed weighted length of the expert's output", SIZE),
    "count": about("slots", role="count", of="norm"),
}
FUNCTIONAL_VARIABLES = {
    **family("jsd", about(JSD, "nats", "high"), "null"),
    "excess": about(f"{JSD}, above its null", "nats", "high"),
    **family("mean_jsd", about(f"mean {JSD}", "nats", "high"), "null"),
    "mean_excess": about(f"mean {JSD}, above its null", "nats", "high"),
    "mean_p": about("p of the mean divergence", "", "low", "p", "mean_jsd"),
    "cluster_count": about("words of the expert in the cluster"),
    "slot_count": about("slots", role="count", of="jsd"),
    "vocab_cluster": about("cluster of the token", role="label", of="cluster_count"),
}
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of a proof, relative; in half precision 3e-2


@neutral()
def contributions(
    model: Model,
    inputs: Any,
    labels: Sequence[Any] | None = None,
    blocks: Blocks = None,
    *,
    batch_size: int | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """How much each expert adds: sizes of its output over the tokens that it served.

    Args:
        inputs: documents.
        labels: one for each document; None: all are "all".
        blocks: None: all that have experts.

    Returns:
        [label, block, expert], sizes as Euclidean norms in the units of the stream, NaN for experts without a token:
        reap: mean of weight * |f(x)| (REAP, arXiv 2510.13999); norm: mean of |f(x)|; both with an interval
        over documents (_low, _high).  total: sum of weight * |f(x)|; count: slots.
    """
    prompts, layers = encode(model, inputs), layers_of(model, blocks)
    names, of = np.unique(document_labels(labels, len(prompts), "documents"), return_inverse=True)
    experts = max(x.n_experts for x in layers)
    taps = [_spoken(model, layer, lambda f: f.double().norm(dim=1)) for layer in layers]

    def observe(states: Rows, batch: Batch) -> dict[str, Any]:
        document, at = torch.unique(batch.prompt, return_inverse=True)
        sums = np.zeros((len(document), 3, len(layers), experts))  # weight * size, size, slots
        for i, (tap, layer) in enumerate(zip(taps, layers, strict=True)):
            expert, weight, size = (x.cpu().numpy() for x in states[tap])
            real = (expert >= 0) & (expert < layer.n_experts)
            where = np.broadcast_to(at.numpy()[:, None], real.shape)[real], i, expert[real]
            for j, values in enumerate((np.abs(weight.astype(float)) * size, size, np.ones_like(size))):
                np.add.at(sums[:, j], where, values[real])
        return {"sums": (document, sums)}

    output = Output(("prompt", "statistic", "block", "expert"), dtype=np.float64, combine="sum")
    coords = {"statistic": 3, "block": len(layers), "expert": experts}
    sums = observed(model, prompts, Plan(taps, {"sums": output}, observe, coords), batch_size=batch_size)["sums"]
    mass, size, count = sums.swapaxes(0, 1)
    cluster = near_duplicates(p.ids for p in prompts)
    settings = {"draws": draws, "level": level, "seed": seed}
    found, methods = {}, {}
    for name, values in (("reap", mass), ("norm", size)):
        own, methods[name] = ratio(name, values, count, Design(cluster), by=of, **settings)
        found |= own
    by_label = np.eye(len(names))[of].T
    found["total"] = np.tensordot(by_label, mass, 1)
    found["count"] = np.tensordot(by_label, count, 1).astype(int)
    attrs = {"documents": len(prompts), **intervals(methods)} | ({"clusters": said(cluster)} if said(cluster) else {})
    table = xr.Dataset(
        {name: (("label", "block", "expert"), value) for name, value in found.items()},
        {"label": names.astype(object), "block": [x.block for x in layers], "expert": np.arange(experts)},
        attrs,
    )
    return derived("routing.contributions", described(table, VARIABLES), ran(model, prompts), **settings)


@neutral()
def functional(
    model: Model,
    inputs: Any,
    blocks: Blocks = None,
    *,
    clusters: int = 64,
    top: int = 3,
    draws: int = 200,
    batch_size: int | None = None,
    precision: str = "fp32",
    seed: int = 0,
) -> Reading:
    """How much experts differ in the words that they write (functional specialisation, arXiv 2604.02178).

    Each expert's output, at each token that it served, is read by the logit lens; its ``top`` tokens fall into
    clusters of similar unembedding rows (:func:`token_clusters`).  One readout for every slot: name blocks for large
    models.

    Returns:
        jsd [block, expert]: Jensen-Shannon divergence, nats, of the expert's clusters and those of all experts of its
        block; jsd_null: its mean when the expert draws as many slots from the block's clusters at random; excess:
        the difference.  mean_jsd, mean_jsd_null, mean_excess [block]: means weighted by slots; mean_p: how often the
        null reaches mean_jsd.  cluster_count [block, expert, cluster]; slot_count [block, expert]; vocab_cluster.

    The null takes slots for independent, as the paper does, and the top tokens of a slot for one draw (at worst it is
    too high).  Tokens of one document are alike: a small excess may be their doing, and says little by itself.
    """
    prompts, layers = encode(model, inputs), layers_of(model, blocks)
    readout = Readout(model, precision)
    cluster = token_clusters(model, clusters, seed=seed)
    experts = max(x.n_experts for x in layers)

    def words(f: Tensor) -> Tensor:
        if f.shape[1] != model.d_model:
            raise Refused(
                f"{model.name}: its experts write {f.shape[1]} numbers and the stream is {model.d_model} wide, so the "
                "unembedding cannot read them. Leave these blocks out."
            )
        return readout.read(readout.features(f.to(model.dtype))[None], top).token_id[0]

    taps = [_spoken(model, layer, words) for layer in layers]

    def observe(states: Rows, batch: Batch) -> dict[str, Any]:
        count = np.zeros((len(layers), experts, clusters), np.int64)
        slots = np.zeros((len(layers), experts), np.int64)
        for i, (tap, layer) in enumerate(zip(taps, layers, strict=True)):
            expert, _, ids = (x.cpu() for x in states[tap])
            real = (expert >= 0) & (expert < layer.n_experts)
            np.add.at(count[i], (expert[real][:, None].numpy(), cluster[ids[real]].numpy()), 1)
            slots[i] = np.bincount(expert[real].numpy(), minlength=experts)
        return {"count": count, "slots": slots}

    outputs = {
        "count": Output(("block", "expert", "cluster"), dtype=np.int64, combine="sum"),
        "slots": Output(("block", "expert"), dtype=np.int64, combine="sum"),
    }
    coords = {"block": len(layers), "expert": experts, "cluster": clusters}
    seen = observed(model, prompts, Plan(taps, outputs, observe, coords), batch_size=batch_size)
    count, slots = seen["count"], seen["slots"]
    rng = np.random.default_rng(seed)
    found: dict[str, list[Any]] = {}
    for own, n in zip(count, slots, strict=True):
        pooled = own.sum(0) / max(1, own.sum())
        value = np.where(n > 0, js_divergence(own / np.maximum(1, own.sum(1, keepdims=True)), pooled), np.nan)
        null = np.full((draws, experts), np.nan)
        for e in np.flatnonzero(n):
            null[:, e] = js_divergence(rng.multinomial(n[e], pooled, size=draws) / n[e], pooled)
        share, chance = n / max(1, n.sum()), np.nan_to_num(null).mean(0)
        mean, means = np.nansum(share * value), np.nansum(share * null, 1)
        for name, x in (
            ("jsd", value), ("jsd_null", np.where(n > 0, chance, np.nan)), ("excess", value - chance),
            ("mean_jsd", mean), ("mean_jsd_null", means.mean()), ("mean_excess", mean - means.mean()),
            ("mean_p", p_value(mean, means)),
        ):  # fmt: skip
            found.setdefault(name, []).append(x)
    two = ("block", "expert")
    table = xr.Dataset(
        {
            **{name: (two[: np.ndim(x)], np.array(x)) for name, x in found.items()},
            "cluster_count": ((*two, "cluster"), count),
            "slot_count": (two, slots),
            "vocab_cluster": (("vocab",), cluster.numpy().astype(np.int32)),
        },
        {"block": [x.block for x in layers], "expert": np.arange(experts)},
        {"documents": len(prompts)},
    )
    settings = {"clusters": clusters, "top": top, "draws": draws, "precision": precision, "seed": seed}
    return derived("routing.functional", described(table, FUNCTIONAL_VARIABLES), ran(model, prompts), **settings)


@neutral()
def token_clusters(model: Model, clusters: int = 64, *, rounds: int = 25, seed: int = 0) -> Tensor:
    """[vocab] cluster numbers of the unembedding rows, by spherical k-means (Dhillon & Modha 2001).

    The mean row is taken out first: what all rows have in common changes no probability.
    """
    weight = model.unembedding[0].float()
    if not 1 <= clusters <= len(weight):
        raise InputError(f"clusters={clusters}, and the vocabulary has {len(weight)} tokens. Use 1 to {len(weight)}.")
    rows = nn.functional.normalize(weight - weight.mean(0), dim=1)
    # k-means++: each further row is drawn by its distance to those before it.
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(rows), (), generator=generator))]
    nearest = rows @ rows[chosen[0]]
    for _ in range(clusters - 1):
        chosen.append(int(torch.multinomial((1 - nearest).clamp_min(1e-9).cpu(), 1, generator=generator)))
        nearest = torch.maximum(nearest, rows @ rows[chosen[-1]])
    centres, found = rows[chosen], torch.full((len(rows),), -1, device=rows.device)
    for _ in range(rounds):
        before, found = found, (rows @ centres.T).argmax(1)
        if torch.equal(before, found):
            break
        total = torch.zeros_like(centres).index_add_(0, found, rows)
        # An empty cluster keeps its centre.
        centres = torch.where(total.any(1, keepdim=True), nn.functional.normalize(total, dim=1), centres)
    return found.cpu()


# ---------------------------------------------------------------- the pass


def layers_of(model: Model, blocks: Blocks) -> list[MoE]:
    """The blocks asked for, in order; Refused where what one expert gives cannot be seen."""
    if not model.moe:
        raise Refused(f"{model.name} is a dense model: no block has routed experts, so there is nothing to read.")
    layers = [moe_of(model, b) for b in numbered(blocks, model.n_layers, model.moe)]
    for layer in layers:
        if not layer.before:
            raise Refused(
                f"{model.name}: block {layer.block} dispatches tokens inside its router ({layer.name}), so what one "
                "expert gives a token is not seen. Ask about its routing instead (RoutingTracer)."
            )
    return layers


def _spoken(model: Model, layer: MoE, of: Callable[[Tensor], Tensor]) -> Tap:
    """What a block's experts give: expert and weight [row, slot], and ``of`` each slot's output [row, width] (float32).

    The weight is not in the output.  That the outputs times their weights are what the block's experts gave is proved
    on the first batch.
    """
    proved = False

    def read(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal proved
        call = Call(module, args, kwargs)
        index, weight = call.get(call.index), call.get(call.weight)
        routing = layer.read(module, args, kwargs, None)
        if index.ndim != 2 or weight.shape != index.shape or routing is None:
            raise Refused(
                f"{type(module).__name__} is called with masks and not with slots, so one expert's output for a token "
                "cannot be asked for."
            )
        whole, total, found = next(tensors(output)).reshape(len(index), -1), 0.0, []
        # LongCat's experts (some pass their input on) cannot be called with one slot: a second, of weight 0.
        ones = torch.tensor([1.0, 0.0] if layer.n_identity else [1.0])
        for slot in range(index.shape[1]):
            # forward itself, so that no hook and no intervention comes between.
            one = call.replaced(index[:, [slot] * len(ones)], ones.to(weight).expand(len(weight), -1))
            f = next(tensors(module.forward(*one[0], **one[1]))).reshape(len(index), -1).float()
            if not proved:
                total = total + weight[:, slot, None].float() * f
            found.append(of(f))
        if not proved:
            same(model, layer, whole, total, "the slots' outputs times their weights", "its experts gave")
            proved = True
        return routing.index, weight.float(), torch.stack(found, 1)

    return Tap(model.module.get_submodule(layer.name), read, layer.name)


def same(model: Model, layer: MoE, whole: Tensor, total: Tensor, what: str, of: str) -> None:
    """Refused unless ``total`` is ``whole``, both [rows, width]."""
    error = float((whole.float() - total).norm() / whole.float().norm().clamp_min(1e-30))
    if not error < TOLERANCE.get(whole.dtype, 3e-2):
        raise Refused(
            f"{model.name}: in block {layer.block} {what} are not what {of} (relative error {error:.1g}), so what is "
            "one part's share is not known. Leave this block out: blocks=[...]."
        )


# ---------------------------------------------------------------- numbers


def ratio(
    name: str, above: np.ndarray, below: np.ndarray, design: Design, *, by: np.ndarray | None = None,
    draws: int, level: float, seed: int,
) -> tuple[dict[str, np.ndarray], str]:  # fmt: skip
    """Ratio of sums over documents [document, ...] with its interval, by name, and how that was made.

    ``by``: of groups of documents, [document].
    """
    weighed = Design(design.cluster, weights=below)
    ends = weighed.bootstrap(over(above, below), by=by, level=level, draws=draws, seed=seed, bounds=(0, np.inf))
    return {name: ends.value, f"{name}_low": ends.low, f"{name}_high": ends.high}, ends.said("documents")
