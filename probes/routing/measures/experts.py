"""Experts beside each other: which serve a token together, where tokens go next, and how routers see them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from probes.results import family, of_weights
from probes.routing.measures.documents import (
    Clusters,
    Statistic,
    corrected,
    counts_of,
    grouped,
    intervals,
    shares,
    token_table,
)
from workbench.errors import InputError, Refused
from workbench.reading import Reading, derived
from workbench.stats import Design, Interval, entropy, over
from workbench.variables import about, described
from workbench.weights import merged, outermost

if TYPE_CHECKING:
    from probes.routing.store import Trace
    from workbench.model import Model


ENDS = ("low", "high")
VARIABLES = {
    **family("given", about("share of an expert's tokens that the other serves, too"), *ENDS, "null"),
    "expected": about("share of an expert's tokens that the other serves, by loads", "", "", "chance", "given"),
    "lift": about("co-activation over what the loads give", "bits", short_name="lift"),
    "pmi": about("co-activation over the other's load", "bits"),
    "phi": about("correlation of both experts' being there"),
    "count": about("tokens", "tokens", role="count", of="follows"),
    "follows": about("share of an expert's tokens that go to the other in the next block"),
    **family(
        "information", about("information of an expert on the next block's", "nats", "high"), *ENDS, "corrected", "null"
    ),
}
PATH_VARIABLES = {
    "expert": about("strongest expert of the route in the block", role="label", of="count"),
    "count": about("tokens of the route", "tokens"),
    **family("distinct", about("different routes", "routes", "low"), "null"),
    **family("entropy", about("entropy of routes", "nats", "low"), "null"),
    "tokens": about("tokens", role="count", of="entropy"),
}
GEOMETRY_VARIABLES = {
    "cosine": about("cosine of two router rows"),
    "norm": about("length of the router row"),
    **family("mean_cosine", about("mean cosine of router rows"), "null"),
    **family("cosine_size", about("mean size of the cosine of router rows"), "null"),
    **family("rank", about("effective rank of the router", "directions"), "null", "p"),
}


def coactivation(
    source: Reading | Trace, *, clusters: Clusters = None, draws: int = 500, level: float = 0.95, seed: int = 0
) -> Reading:
    """Which experts serve a token together, over all pairs of slots.

    given [block, expert, expert_2]: P(expert_2 in the slots | expert is), with interval (NaN unless every token was
    traced); given_null [block] = (k-1)/(E-1), a router without preferences; expected: what the experts' own loads
    give, if a token's k experts are otherwise drawn at random (conditional Bernoulli; Chen, Dempster & Liu 1994).
    Where slots reach no expert, k is their mean number beside a served one, and pairs are as many as were seen.
    lift = log2(given / expected); pmi = log2(given / load of expert_2), which is below 0 where nothing is going on,
    since an expert does not serve a token twice; phi: correlation of the two being there.
    """
    tables, text = _tables(source, "pairs", clusters, seed)
    whole = counts_of(source)
    data = whole.data
    exists = data["expert_exists"].values

    def conditional(weight: np.ndarray) -> np.ndarray:
        pairs, own = (np.tensordot(weight, tables[x], 1) for x in ("pairs", "usage"))
        return np.divide(pairs, own[..., None], out=np.full(pairs.shape, np.nan), where=own[..., None] > 0)

    ends = _over_groups(conditional, len(tables["tokens"]), level, draws, seed, (0, 1))
    given = ends.value
    load = tables["usage"].sum(0) / max(1, tables["tokens"].sum())
    total = tables["pairs"].sum((0, 2, 3)) / max(1, tables["tokens"].sum())
    others = np.nan_to_num(over(total, load.sum(1)))
    expected = np.full(given.shape, np.nan)
    for b in range(len(others)):
        real = np.flatnonzero(exists[b] & (load[b] > 0))
        if len(real):
            pairs = together(load[b][real], round(float(others[b])) + 1)
            expected[b][np.ix_(real, real)] = pairs * (total[b] / max(pairs.sum(), 1e-300)) / load[b][real][:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        joint = given * load[..., None]
        spread = np.sqrt(load * (1 - load))
        found = {
            "expected": expected,
            "lift": np.log2(given / expected),
            "pmi": np.log2(given / load[:, None]),
            "phi": (joint - load[..., None] * load[:, None]) / (spread[..., None] * spread[:, None]),
        }
    three = ("block", "expert", "expert_2")
    table = xr.Dataset(
        {
            "given": (three, given), "given_low": (three, ends.low), "given_high": (three, ends.high),
            **{name: (three, values) for name, values in found.items()},
            "given_null": (("block",), others / np.maximum(1, exists.sum(1) - 1)),
        },
        {"block": data["block"].values, "expert": data["expert"].values, "expert_2": data["expert"].values},
        {"chart": "coactivation", **intervals({"given": ends.said("groups of documents")}), **_clusters(text)},
    )  # fmt: skip
    return derived("routing.coactivation", described(table, VARIABLES), whole, draws=draws, level=level, seed=seed)


def together(load: np.ndarray, k: int) -> np.ndarray:
    """[E, E] P(both are among the k) if k of E are drawn at random but for their loads P(one is) [E], which sum to k.

    The distribution of greatest entropy: a set's probability is proportional to the product of its members' odds.
    """
    load = np.clip(load * min(k, len(load)) / load.sum(), 1e-12, 1 - 1e-12)
    if k >= len(load):
        return np.ones((len(load), len(load))) - np.eye(len(load))
    odds = load / (1 - load)
    for _ in range(500):
        # Sums over sets that leave one expert out, of 0 to k members.
        without = np.zeros((len(load), k + 1))
        without[:, 0] = 1
        for j, odd in enumerate(odds):
            own = without[j].copy()
            without[:, 1:] += odd * without[:, :-1]
            without[j] = own
        mine = odds * without[:, k - 1]
        found = mine / (mine + without[:, k])
        odds = odds * load / found
        odds = odds / np.exp(np.log(odds).mean())
        if np.abs(found - load).max() < 1e-10:
            break
    both = np.zeros((len(load), len(load), k))
    both[..., 0] = 1
    for j, odd in enumerate(odds):
        row, column = both[j].copy(), both[:, j].copy()
        both[..., 1:] += odd * both[..., :-1].copy()
        both[j], both[:, j] = row, column
    pair = odds[:, None] * odds[None] * both[..., k - 2] if k > 1 else np.zeros(both.shape[:2])
    np.fill_diagonal(pair, 0)
    return pair * (k * (k - 1) / max(pair.sum(), 1e-300))


def flow(
    source: Reading | Trace, *, clusters: Clusters = None, draws: int = 500, level: float = 0.95, seed: int = 0
) -> Reading:
    """Where a token's strongest expert leads in the next traced block.

    count [block_from, expert, expert_2]: tokens; follows: P(next | here); information [block_from]: their mutual
    information in nats, with interval (NaN unless every token was traced), and information_null, what counts of
    independent experts would show for want of tokens ((E-1)(E'-1)/2N; Miller 1955).  information_corrected: less the
    bias that documents drawn again show, which is more, since tokens of one document are alike.
    """
    tables, text = _tables(source, "flow", clusters, seed)
    whole = counts_of(source)
    data = whole.data
    count = tables["flow"].sum(0)

    def information(weight: np.ndarray) -> np.ndarray:
        joint = np.tensordot(weight, tables["flow"], 1)
        joint = joint / np.maximum(joint.sum((-2, -1), keepdims=True), 1)
        return entropy(joint.sum(-1)) + entropy(joint.sum(-2)) - entropy(joint.reshape(*joint.shape[:-2], -1))

    seen = [((count.sum(axis) > 0).sum(1) - 1) for axis in (1, 2)]
    three, one, most = ("block_from", "expert", "expert_2"), ("block_from",), np.log(count.shape[1])
    ends = _over_groups(information, len(tables["tokens"]), level, draws, seed, biased=True)
    blocks, experts = data["block"].values, data["expert"].values
    table = xr.Dataset(
        {
            "count": (three, count.astype(int)),
            "follows": (three, np.nan_to_num(shares(count))),
            "information": (one, ends.value),
            **{f"information{x}": (one, np.clip(part, 0, most)) for x, part in corrected(ends).items()},
            "information_null": (("block_from",), seen[0] * seen[1] / (2 * np.maximum(count.sum((1, 2)), 1))),
        },
        {"block_from": blocks[:-1], "block": blocks, "expert": experts, "expert_2": experts},
        {"chart": "flow", **intervals({"information": ends.said("groups of documents")}), **_clusters(text)},
    )
    return derived("routing.flow", described(table, VARIABLES), whole, draws=draws, level=level, seed=seed)


def paths(source: Reading | Trace, *, top: int = 20, seed: int = 0) -> Reading:
    """The routes that tokens take through all traced blocks, by their strongest expert in each.  Needs trace=True.

    count [path] of the ``top`` commonest, expert [path, block]; distinct: how many there are; entropy of routes in nats
    (as counted, too low where routes outnumber tokens), and for both their value when every block's experts are
    shuffled among the tokens (_null).
    """
    first = np.concatenate([_strongest(rows) for rows in token_table(source)])
    whole = counts_of(source)
    rng = np.random.default_rng(seed)

    def counted(routes: np.ndarray) -> Counter[bytes]:
        return Counter(row.tobytes() for row in np.ascontiguousarray(routes.astype(np.int32)))

    def spread(found: Counter[bytes]) -> float:
        return float(entropy(np.array(list(found.values()), float) / len(first)))

    own = counted(first)
    null = counted(np.stack([rng.permutation(column) for column in first.T], 1))
    best = own.most_common(top)
    table = xr.Dataset(
        {
            "expert": (("path", "block"), np.array([np.frombuffer(route, np.int32) for route, _ in best])),
            "count": (("path",), np.array([n for _, n in best])),
            "distinct": len(own), "distinct_null": len(null), "entropy": spread(own), "entropy_null": spread(null),
            "tokens": len(first),
        },
        {"block": whole.data["block"].values},
    )  # fmt: skip
    return derived("routing.paths", described(table, PATH_VARIABLES), whole, top=top, seed=seed)


def _strongest(rows: dict[str, np.ndarray]) -> np.ndarray:
    """[tokens, block] the expert of the largest weight; -1 where there is none."""
    if "weight" not in rows:
        raise InputError(
            "There are no weights (vLLM returns none), so it is not known which of a token's experts is the strongest."
        )
    weight = np.where(rows["index"] >= 0, np.nan_to_num(rows["weight"].astype(np.float32)), -np.inf)
    return np.take_along_axis(rows["index"], weight.argmax(-1)[..., None], -1)[..., 0]


def _tables(
    source: Reading | Trace, what: str, clusters: Clusters, seed: int
) -> tuple[dict[str, np.ndarray], str]:
    """Counts by random groups of documents: usage [group, block, expert], tokens [group], and pairs or flow.

    And what is said of documents' clusters.
    """
    data = counts_of(source).data
    if isinstance(source, Reading) and "expert_id" not in data:
        name = {"pairs": "pair_count", "flow": "flow_count"}[what]
        if name not in data:
            raise InputError(f"The reading has no {what}. Trace with pairs=True or trace=True.")
        found = {"usage": data["usage_count"].sum("label"), "tokens": data["token_count"].sum(), what: data[name]}
        return {name: values.values[None].astype(float) for name, values in found.items()}, ""
    blocks, e = data.sizes["block"], data.sizes["expert"]
    if what == "flow" and blocks < 2:
        raise InputError("Flow is from block to block, and one block was traced.")
    group, text = grouped(data, clusters, seed)
    groups = int(group.max()) + 1
    usage, tokens = np.zeros((groups, blocks, e)), np.zeros(groups)
    table = np.zeros((groups, blocks - (what == "flow"), e, e))
    for rows in token_table(source):
        index, first = rows["index"], _strongest(rows) if what == "flow" else None
        for g in np.unique(group[rows["document"]]):
            mine = group[rows["document"]] == g
            tokens[g] += mine.sum()
            for b in range(blocks):
                own = index[mine, b]
                held = np.zeros((len(own), e), np.float32)
                at, slot = np.nonzero(own >= 0)
                held[at, own[at, slot]] = 1
                usage[g, b] += held.sum(0)
                if what == "pairs":
                    table[g, b] += held.T @ held * (1 - np.eye(e))
                elif b + 1 < blocks and first is not None:
                    here, there = first[mine, b], first[mine, b + 1]
                    both = (here >= 0) & (there >= 0)
                    np.add.at(table[g, b], (here[both], there[both]), 1)
    return {"usage": usage, "tokens": tokens, what: table}, text


def _over_groups(
    statistic: Statistic, groups: int, level: float, draws: int, seed: int,
    bounds: tuple[float, float] = (-np.inf, np.inf), *, biased: bool = False,
) -> Interval:  # fmt: skip
    """Interval of a statistic of how often each group of documents is there."""
    return Design(n=groups).bootstrap(
        statistic, level=level, draws=draws, seed=seed, bounds=bounds, reflect=biased
    )


def _clusters(text: str) -> dict[str, str]:
    return {"clusters": text} if text else {}


def routed_blocks(model: Model) -> list[int]:
    """The blocks that have a router; Refused for a dense model."""
    if not model.moe:
        raise Refused(f"{model.name} is a dense model: it has no routers.")
    return sorted(model.moe)


def router_rows(model: Model, block: int) -> np.ndarray:
    """[experts, width] the router's matrix; Refused where it has none of that shape."""
    from workbench.anatomy.moe import moe_of

    layer = moe_of(model, block)
    if layer.router:
        for _, value in merged(outermost(model.module, layer.router)):
            if value.ndim == 2 and value.shape[0] >= layer.n_experts and value.shape[1] == model.d_model:
                return value.detach().double().cpu().numpy()[: layer.n_experts]
    raise Refused(f"{model.name}: the router of block {block} has no matrix of one row for each expert.")


def geometry(model: Model, *, draws: int = 100, seed: int = 0) -> Reading:
    """How the routers' rows lie: experts whose rows are alike are chosen by the same states.

    cosine [block, expert, expert_2]; mean_cosine [block] of all pairs, its magnitude cosine_size, and rank [block],
    the effective number of directions exp(entropy of squared singular values); norm [block, expert].  Beside them what
    as many Gaussian rows of that width give (_null) and p of being less spread than those (rank_p).
    """
    blocks = routed_blocks(model)
    e = max(model.moe[b].n_experts for b in blocks)
    cosine, norm = np.full((len(blocks), e, e), np.nan), np.full((len(blocks), e), np.nan)
    rng = np.random.default_rng(seed)
    names = ("mean_cosine", "cosine_size", "rank")
    found, null, p = np.zeros((len(blocks), 3)), np.zeros((len(blocks), 3)), np.zeros(len(blocks))
    for i, block in enumerate(blocks):
        rows = router_rows(model, block)
        n = len(rows)
        norm[i, :n] = np.linalg.norm(rows, axis=1)
        cosine[i, :n, :n], found[i] = _spread(rows)
        random = np.stack([_spread(rng.standard_normal(rows.shape))[1] for _ in range(draws)])
        null[i] = random.mean(0)
        p[i] = (1 + (random[:, 2] <= found[i, 2]).sum()) / (1 + draws)
    table = xr.Dataset(
        {
            "cosine": (("block", "expert", "expert_2"), cosine), "norm": (("block", "expert"), norm),
            **{name: (("block",), found[:, j]) for j, name in enumerate(names)},
            **{f"{name}_null": (("block",), null[:, j]) for j, name in enumerate(names)},
            "rank_p": (("block",), p),
        },
        {"block": blocks, "expert": np.arange(e), "expert_2": np.arange(e)},
    )  # fmt: skip
    table = described(table, GEOMETRY_VARIABLES)
    return derived("routing.geometry", table, of_weights(model), draws=draws, seed=seed)


def _spread(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    cosine = unit @ unit.T
    off = cosine[~np.eye(len(rows), dtype=bool)]
    power = np.linalg.svd(unit, compute_uv=False) ** 2
    return cosine, np.array([off.mean(), np.abs(off).mean(), np.exp(entropy(power / power.sum()))])
