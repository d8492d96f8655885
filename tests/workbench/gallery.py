"""One figure of every kind, and the readings that they are of: made up, or read from a model made in a moment."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import xarray as xr
from image_readings import found
from moving import moving
from synthetic import embedding_lens, logit_attribution, logit_lens

from workbench.figures import Figure
from workbench.reading import Reading
from workbench.variables import described

ORIGIN = {
    "model": {"name": "made-up_7B", "fingerprint": "0f1e2d3c4b5a6978", "dtype": "bfloat16", "device": "cuda:0"},
    "prompts": 3, "prompts_read": 3, "date": "2026-01-02T03:04:05+00:00", "versions": {"latent-workbench": "0.1.0"},
}  # fmt: skip


def told(data: xr.Dataset, module: str, table: str = "VARIABLES") -> xr.Dataset:
    """The table with the attributes that this module's results have."""
    return described(data, getattr(import_module(module), table))


def lens() -> Reading:
    data = logit_lens(targets=[" Paris", " Rome", "日"]).assign_attrs(model="made-up_7B")
    settings = {
        "name": "LogitLens", "at": "resid", "top_k": 5, "precision": "fp32",
        "null": "target under the state half a prompt away, same layer",
    }  # fmt: skip
    return Reading(data, {**ORIGIN, "reader": settings})


def near() -> Reading:
    return Reading(embedding_lens(), {**ORIGIN, "reader": {"name": "EmbeddingLens"}})


def attributed() -> Reading:
    return Reading(logit_attribution(), {**ORIGIN, "reader": {"name": "LogitAttribution"}})


def _shares(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    made = rng.random(shape) ** 3
    return made / made.sum(-1, keepdims=True)


def latent() -> Reading:
    rng = np.random.default_rng(0)
    dims = ("layer", "index")
    found = {name: (dims, _shares(rng, (9, 5))) for name in ("index_layer_share", "index_layer_share_null")}
    found["similarity"] = (("prompt", "layer", "position", "rank"), rng.uniform(0.2, 0.9, (3, 9, 12, 2)))
    found |= {f"similarity_floor_{name}": ("layer", rng.uniform(0.2, 0.6, 9)) for name in ("random", "shuffled")}
    data = xr.Dataset(
        found, {"layer": range(9), "index": [0, 8, 16, 24, 31]}, {"reader": "LatentLens", "model": "made-up_7B"}
    )
    return Reading(told(data, "lenses.latent.lens"), {**ORIGIN, "reader": {"name": "LatentLens", "top_k": 5}})


def senses() -> Reading:
    rng = np.random.default_rng(1)
    rate = rng.uniform(0.5, 0.9, (3, 2, 8))
    found = {"rate": rate, "rate_low": rate - 0.06, "rate_high": rate + 0.06, "rate_chance": np.full(rate.shape, 0.5)}
    data = xr.Dataset(
        {k: (("measure", "lens", "layer"), v) for k, v in found.items()},
        {"measure": ["sense of the neighbour", "word in both", "next token"], "lens": ["logit", "latent"],
         "layer": range(8)},
        {"model": "made-up_7B", "reader": "senses"},
    )  # fmt: skip
    return Reading(told(data, "lenses.latent.senses"), {**ORIGIN, "reader": {"name": "senses", "level": 0.95}})


@lru_cache(maxsize=1)
def routed() -> Reading:
    import workbench
    from probes.routing import RoutingTracer
    from workbench.organisms.polyglot import twins

    texts, labels = twins.documents(60, languages=True, tokens=30)
    tracer = RoutingTracer(labels, trace=True, scores=True, pairs=True)
    reading = workbench.read(twins.planted(), texts, tracer, progress=False)
    # That model has no tokenizer: its words get texts, of which some break careless labels.
    words = [" the", "<s>", "$x$", "_under", "日本", "a%b", " мир", "\n", "```", " naïve"]
    ids = reading.data["input_id"].values
    shown = np.array([[words[i % len(words)] if i >= 0 else "" for i in row] for row in ids], object)
    reading.data["input_token"] = (reading.data["input_id"].dims, shown)
    return reading


def effects() -> xr.Dataset:
    """As from probes.routing.effects: three claims, of which two are backed."""
    rng = np.random.default_rng(2)
    own = {"delta": [0.21, 0.11, 0.02], "excess_low": [0.1, 0.05, -0.1], "q_random": [0.01, 0.01, 0.8],
           "backed": [True, True, False]}  # fmt: skip
    own |= {"delta_low": [0.17, 0.08, -0.02], "delta_high": [0.26, 0.14, 0.05]}
    made = {name: ("claim", np.array(values)) for name, values in own.items()}
    made |= {f"delta_{x}": (("claim", "draw"), rng.normal(0.03, 0.02, (3, 12))) for x in ("random", "replaced")}
    made["experts"] = ("claim", [json.dumps(e) for e in ({1: [0, 1]}, {1: [2]}, {0: [3]})])
    claims = {"claim": ["L0", "L1", "L2 of another family"]}
    return told(xr.Dataset(made, claims, {"model": "planted", "documents": 60}), "probes.routing.costs")


def routing_figures() -> dict[str, Figure]:
    from probes.routing import figures, measures

    found = routed()
    names = ("usage", "entropy", "gate", "words", "divergence", "layers", "overlap", "gaps", "coactivation", "flow")
    made = {name: found.figure(name) for name in names}
    made["gaps, backed"] = found.figure("gaps", effects=effects())
    made["forest"] = figures.forest(effects())
    steps = ["1k", "5k", "10k", "50k", "143k"]
    made["saturation"] = figures.saturation(measures.saturation([found] * 5, steps, floor=found))
    made["parallel"] = figures.parallel(measures.parallel(found, [i // 4 for i in range(60)], draws=20))
    return made


def adapted() -> Reading:
    rng = np.random.default_rng(3)
    adapters, labels, stages = 6, ["code", "maths", "poetry", "law"], ["selected", "given"]
    weight = _shares(rng, (24, 8, adapters)) + np.eye(adapters)[np.arange(24) % 4][:, None]
    weight /= weight.sum(-1, keepdims=True)
    two = ("document", "projection", "adapter")
    data = xr.Dataset(
        {
            "document_weight": (two, weight), "document_chosen": (two, (weight > 0.3).astype(float)),
            "document_entropy": (("document", "projection", "stage"), rng.random((24, 8, 2))),
            "document_tokens": ("document", np.full(24, 30)), "document_label": ("document", np.arange(24) % 4),
            "routing_entropy_uniform": ("stage", np.log([6.0, 2.0])),
            "routing_entropy_random": (("projection", "stage"), rng.random((8, 2))),
            "oracle_adapter": ("label", np.arange(4)),
        },
        {
            "label": labels, "adapter": [f"adapter_{i}" for i in range(adapters)], "stage": stages,
            "projection": [f"{b}.self_attn.{p}_proj" for b in range(2) for p in "qkvo"],
            "block": ("projection", np.repeat([0, 1], 4)), "kind": ("projection", list("qkvo") * 2),
        },
        {"model": "made-up_7B", "reader": "AdapterRouting"},
    )  # fmt: skip
    return Reading(told(data, "probes.routing.adapters.tracing"), {**ORIGIN, "reader": {"name": "AdapterRouting"}})


def believed() -> Reading:
    rng = np.random.default_rng(4)
    names = ["Paris", "Rome", "Berlin", "the_bell", "日本", "100%"]
    belief = _shares(rng, (2, 3, 5, len(names)))
    data = xr.Dataset(
        {"belief": (("prompt", "layer", "position", "candidate"), belief), "logit": (("prompt", "layer", "position",
         "candidate"), np.log(belief)), "candidate_name": (("prompt", "candidate"), np.array([names] * 2, object))},
        {"layer": [0, 4, 8], "position": range(5), "candidate": range(len(names))},
        {"model": "made-up_7B", "reader": "CandidateBelief"},
    )  # fmt: skip
    asked = {"name": "CandidateBelief", "mass": False}
    return Reading(told(data, "probes.superposition.belief"), {**ORIGIN, "reader": asked})


def _with_interval(rng: np.random.Generator, dims: tuple[str, ...], shape: tuple[int, ...], name: str) -> dict:
    value = np.cumsum(rng.normal(0.1, 0.2, shape), 0) + 1
    return {name: (dims, value), f"{name}_low": (dims, value - 0.2), f"{name}_high": (dims, value + 0.2)}


def superposition_figures() -> dict[str, Figure]:
    from probes.superposition import figures, held, soft, used
    from probes.superposition.problems import Problem

    rng = np.random.default_rng(5)
    groups = ["not reachable", "reachable", "frontier", "optimal"]
    shared = _shares(rng, (5, 4))
    table = xr.Dataset(
        {"mean": (("place", "group"), shared), **_with_interval(rng, ("place", "group"), (5, 4), "inner")},
        {"place": range(5), "group": np.array(groups, object)},
    )
    conditions = ["plain", "deleted", "mean", "resampled", "mirrored", "edit optimal", "edit other frontier",
                  "edit not reachable"]  # fmt: skip
    interventions = xr.Dataset(
        {**_with_interval(rng, ("condition",), (8,), "effect"),
         **{f"accuracy{end}": ("condition", np.linspace(0.9, 0.2, 8) + far)
            for end, far in (("", 0), ("_low", -0.1), ("_high", 0.1))}},
        {"condition": np.array(conditions, object)}, {"model": "made-up_7B"},
    )  # fmt: skip
    layers = _with_interval(rng, ("layer",), (13,), "kl") | _with_interval(rng, ("layer",), (13,), "kl_second")
    for kind in ("soft", "hard"):
        layers |= _with_interval(rng, ("layer",), (13,), f"entropy_{kind}")
    layers = xr.Dataset(layers, {"layer": range(13)}, {"model": "made-up_7B"})
    mixed = {
        name: described(xr.Dataset(
            {**_with_interval(rng, ("size",), (5,), "entropy"), "entropy_even": 10.8}, {"size": [1, 2, 4, 8, 16]}
        ), soft.MIXTURE_VARIABLES)
        for name in ("random", "step 1000", "step 143000")
    }
    edges = ((0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (3, 6), (7, 8), (7, 9), (8, 10))
    names = ("Alex", "bompus", "jelpus", "lempus", "rorpus", "zhorpus", "brimpus", "wumpus", "dax", "yimpus", "gorpus")
    problem = Problem(edges, 0, 6, 10, names)
    target = {"target_mean": (("layer", "position"), rng.random((7, 4)))}
    layered = xr.Dataset(target, {"layer": range(7), "position": range(4)}, {"problems": 4})
    described(table, held.MASS_VARIABLES), described(interventions, used.VARIABLES)
    described(layers, soft.VARIABLES), described(layered, held.FOCUS_VARIABLES)
    return {
        "areas": figures.areas(table), "inner": figures.inner(table), "uses": figures.uses(interventions),
        "soft": figures.soft(layers), "entropies": figures.entropies(layers), "mixtures": figures.mixtures(mixed),
        "graph": figures.graph(problem, _shares(rng, (4, 11)), then="="),
        "depths": figures.depths(layered),
    }  # fmt: skip


def featured() -> Reading:
    """A dictionary's effective features, at four layers and in two dictionaries."""
    rng = np.random.default_rng(6)
    dims = ("layer", "dictionary")
    data = xr.Dataset(
        {**_with_interval(rng, dims, (4, 2), "psi"), "F": (dims, rng.uniform(50, 90, (4, 2))),
         "fvu": (dims, rng.uniform(0.1, 0.3, (4, 2))), "n_features": (dims, np.full((4, 2), [4096.0, 16384.0])),
         "psi_null": (dims, rng.uniform(2.0, 2.2, (4, 2)))},
        {"layer": [0, 4, 8, 12], "dictionary": ["4k", "16k"]},
        {"model": "made-up_7B", "reader": "DictionaryFeatures"},
    )  # fmt: skip
    asked = {"name": "DictionaryFeatures", "rotations": 3, "seed": 0}
    return Reading(told(data, "probes.superposition.features.dictionary"), {**ORIGIN, "reader": asked})


def feature_figures() -> dict[str, Figure]:
    from probes.superposition.features import figures
    from probes.superposition.features.measures import dimensionality, interference

    rng = np.random.default_rng(7)
    sparsities = 1 - 1 / np.geomspace(1.25, 100, 9)
    rows = rng.normal(size=(9, 20, 5))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    dims = ("sparsity", "feature")
    swept = xr.Dataset(
        {
            "W": (("sparsity", "hidden", "feature"), np.swapaxes(rows, 1, 2)),
            "norm": (dims, np.ones((9, 20))),
            "dimensionality": (dims, np.stack([dimensionality(r) for r in rows])),
            "dimensionality_random": (dims, np.stack([dimensionality(r) for r in rng.normal(size=rows.shape)])),
            "interference": (dims, np.stack([interference(r) for r in rows])),
            "dimensions_per_feature": ("sparsity", np.linspace(1, 0.25, 9)),
        },
        {"sparsity": sparsities, "feature": range(20)},
        {"model": "toy autoencoder"},
    )
    told(swept, "probes.superposition.features.toy")
    return {
        "gram": figures.gram(swept), "sharing": figures.sharing(swept),
        "psi": figures.psi(featured().data), "psi over width": figures.psi(featured().data, over="width"),
    }  # fmt: skip


def valued() -> xr.Dataset:
    """As a tracker gives them: three topics over five checkpoints, of which one moves."""
    return moving(["free speech & press", "animal_welfare", "tax"], "tax", 12)


def value_figures() -> dict[str, Figure]:
    from probes.values import figures
    from probes.values.measures import drift, sides, stance

    data = valued()
    stances, drifts = stance(data, draws=50), drift(data, draws=200)
    return {
        "trajectories": figures.trajectories({"dpo": stances, "ppo": stances}), "drifts": figures.drifts(drifts),
        "times": figures.times(drifts), "sides": figures.sides(sides(data)), **inner_figures(), **beside_figures(),
    }  # fmt: skip


TOPICS = ["free speech & press", "animal_welfare", "tax", "space"]
STEPS = [0, 100, 200, 300, 400]


def inner_figures() -> dict[str, Figure]:
    """Of tables as from probes.values.white."""
    from probes.values import figures

    rng = np.random.default_rng(8)
    topics, steps, layers = len(TOPICS), len(STEPS), 7
    value = np.cumsum(rng.normal(0, 0.4, (topics, steps, layers)), 1)
    dims = ("topic", "checkpoint", "layer")
    coords = {"topic": np.array(TOPICS, object), "checkpoint": STEPS, "layer": range(layers)}
    margins = xr.Dataset(
        {"margin": (dims, value), "margin_p": (dims, np.where(np.abs(value) > 0.5, 0.01, 0.6)), "M": (dims, value),
         "M_p": (dims, np.full(value.shape, 0.2)), "depth_sure": (dims[:2], rng.uniform(1, 5, (topics, steps)))},
        coords,
    )  # fmt: skip
    turned = rng.uniform(0.6, 1, (2, steps, layers))
    auc = rng.uniform(0.5, 0.9, (2, 1, steps, layers))
    one, two = ("fitted", *dims[1:]), ("kind", "direction", *dims[1:])
    directions = xr.Dataset(
        {f"rotation{e}": (one, turned + d) for e, d in (("", 0), ("_low", -0.05), ("_high", 0.03))}
        | {f"mean_auc{e}": (two, auc + d) for e, d in (("", 0), ("_low", -0.05), ("_high", 0.05))},
        {"checkpoint": STEPS, "layer": range(layers), "fitted": ["pooled", "tax"], "kind": ["fixed", "refit"],
         "direction": ["pooled"]},
    )  # fmt: skip
    r = np.linspace(-0.1, 0.8, layers)
    projected = rng.normal(0, 0.5, (layers, topics, steps))
    behaviour = xr.Dataset(
        {"r": ("layer", r), "r_low": ("layer", r - 0.2), "r_high": ("layer", r + 0.15),
         "r_battery_p": ("layer", np.where(r > 0.4, 0.01, 0.5)), "r_null_high": ("null", [0.35, 0.4]),
         "said": (dims[:2], value[..., 0]), "projected": (("layer", *dims[:2]), projected),
         "projected_null_low": (("null", "layer", *dims[:2]), -np.ones((2, *projected.shape))),
         "projected_null_high": (("null", "layer", *dims[:2]), np.ones((2, *projected.shape)))},
        {**coords, "null": ["random", "shuffled"]}, {"level": 0.95},
    )  # fmt: skip
    modules = [f"model.layers.{b}.{m}" for b in range(3) for m in ("self_attn.q_proj", "mlp.down_proj")]
    moved = {n: (("module", "checkpoint"), rng.normal(0.2, 0.2, (6, steps))) for n in ("change", "update", "cosine")}
    moved["reason"] = (("module", "checkpoint"), np.full((6, steps), "", object))
    weights = xr.Dataset(moved, {"module": modules, "checkpoint": STEPS})
    told(directions, "probes.values.white.directions", "DIRECTION_VARIABLES")
    for table, module in ((margins, "margins"), (behaviour, "behaviour"), (weights, "weights")):
        told(table, f"probes.values.white.{module}")
    return {
        "margins": figures.margins(margins), "directions": figures.directions(directions),
        "behaviour": figures.behaviour(behaviour), "weights": figures.weights(weights, value="cosine"),
    }  # fmt: skip


def beside_figures() -> dict[str, Figure]:
    """Of tables as from probes.values.beside."""
    from probes.values import figures

    rng = np.random.default_rng(9)
    topics, attrs = len(TOPICS), {"level": 0.95, "topics": len(TOPICS), "warning": "four topics are few"}

    def banded(name: str, dims: Any, value: np.ndarray, wide: float) -> dict[str, Any]:
        return {
            name: (dims, value),
            f"{name}_band_low": (dims, value - wide),
            f"{name}_band_high": (dims, value + wide),
        }

    gap = xr.Dataset(
        {"training": ("topic", rng.uniform(-0.4, 0.4, topics)), "drift_p": ("topic", np.array([0.01, 0.4, 0.02, 0.9])),
         **banded("drift", ("topic",), rng.uniform(-0.3, 0.3, topics), 0.1), "pearson": 0.7, "pearson_low": 0.1,
         "pearson_high": 0.9, "pearson_p": 0.04},
        {"topic": np.array(TOPICS, object)}, attrs,
    )  # fmt: skip
    both = ("run", "topic")
    runs = xr.Dataset(
        {**banded("keyed_M", both, rng.normal(0, 0.2, (4, topics)), 0.1), "keyed_M_p": (both, rng.random((4, topics))),
         "run_arm": ("run", ["dpo", "dpo", "ppo", "ppo"])},
        {"run": ["dpo-0", "dpo-1", "ppo-0", "ppo-1"], "topic": np.array(TOPICS, object)}, attrs,
    )  # fmt: skip
    value = rng.uniform(0.3, 0.9, (2, len(STEPS)))
    pairs = ("pair", "checkpoint")
    agreement = xr.Dataset(
        {f"spearman{e}": (pairs, value + d) for e, d in (("", 0), ("_low", -0.1), ("_high", 0.1))},
        {"pair": ["Pmf and SampledText", "Pmf and Pmf"], "checkpoint": STEPS},
    )
    scale = ("scale", "checkpoint")
    plane = xr.Dataset(
        {**banded("score", scale, rng.uniform(3, 6, (2, len(STEPS))), 0.3), "null": (scale, np.full((2, 5), 0.2)),
         "lay": ("scale", [4.9, 3.4]), "lay_sd": ("scale", [1.0, 1.1])},
        {"scale": ["IB", "IH"], "checkpoint": STEPS},
    )  # fmt: skip
    told(plane, "probes.values.greatest_good")
    for table in (gap, runs, agreement):
        told(table, "probes.values.beside")
    return {
        "gap": figures.gap(gap), "runs": figures.runs(runs), "agreement": figures.agreement(agreement),
        "plane": figures.plane(plane),
    }  # fmt: skip


def judged() -> Reading:
    """What a judge said of two lenses: shares of patches with a word that fits, and those of two nulls."""
    from lenses.judge.protocol import VARIABLES

    rng = np.random.default_rng(0)
    layers, lenses, nulls = range(8), ["LatentLens", "LogitLens"], ["other picture", "random words"]
    rate, null = rng.uniform(0.4, 0.8, (2, 8)), rng.uniform(0.1, 0.3, (2, 2, 8))
    cells, dims = ("lens", "layer"), ("null", "lens", "layer")
    variables = {
        "rate": (cells, rate), "rate_low": (cells, rate - 0.1), "rate_high": (cells, rate + 0.1),
        "rate_null": (dims, null), "rate_null_low": (dims, null - 0.06), "rate_null_high": (dims, null + 0.06),
        "excess": (dims, rate - null), "picture_key": ("patch", np.array([f"{i}" for i in range(100)], object)),
    }  # fmt: skip
    axes = {"lens": np.array(lenses, object), "null": np.array(nulls, object), "layer": layers}
    data = xr.Dataset(variables, axes, {"reader": "judge.judge (a model)", "model": "made-up"})
    return Reading(described(data, VARIABLES), {"model": {"name": "made-up"}})


def readings() -> dict[str, Reading]:
    return {
        "lens": lens(), "near": near(), "attributed": attributed(), "latent": latent(), "senses": senses(),
        "routed": routed(), "adapted": adapted(), "believed": believed(), "featured": featured(),
    }  # fmt: skip


def lens_figures() -> dict[str, Figure]:
    own = lens()
    return {
        "heatmap": own.figure("heatmap", prompt=1), "entropy of the lens": own.figure("heatmap", value="entropy"),
        "rank": own.figure("heatmap", value="target_rank"), "trajectory": own.figure("trajectory"),
        "curves": own.figure("curves"), "cosine": near().figure(), "attribution": attributed().figure(),
    }  # fmt: skip


def pictured() -> Reading:
    return Reading(found(), {**ORIGIN, "reader": {"name": "LatentLens", "top_k": 5}})


def drifted() -> Reading:
    """How states of texts and patches leave what they came in with."""
    rng = np.random.default_rng(10)
    dims = ("modality", "layer")
    found: dict[str, Any] = {"sink_count": (dims, np.array([[3] * 7, [0] * 7]))}
    for name, value in (("drift_mean", np.linspace([1, 1], [0.2, 0.5], 7).T), ("norm_mean", rng.uniform(3, 9, (2, 7)))):
        found |= {name: (dims, value), f"{name}_low": (dims, value - 0.1), f"{name}_high": (dims, value + 0.1)}
    found |= {f"drift_mean_{null}": (dims, rng.uniform(0, 0.2, (2, 7))) for null in ("null", "null_prompts")}
    for name in ("norm", "drift"):
        found[name] = (("prompt", "layer", "position"), rng.uniform(0.2, 1, (2, 7, 5)))
    axes = {"modality": np.array(["text", "image"], object), "layer": range(7)}
    data = xr.Dataset(found, axes, {"reader": "TokenDrift", "model": "made-up_7B"})
    return Reading(told(data, "lenses.drift"), {**ORIGIN, "reader": {"name": "TokenDrift"}})


def picture_figures() -> dict[str, Figure]:
    from lenses.latent.figures import alignment

    own = pictured()
    return {
        "overlay": own.figure("overlay"), "patches": own.figure("patches"), "alignment": alignment(own),
        "overlay of layers": own.figure("overlay", layer=[0, 2, 4, 8], prompt=1),
        "overlay of a tile": own.figure("overlay", prompt=3, tile=1, word="sky"),
        "heatmap of patches": own.figure("heatmap", positions="image", prompt=1, text=False),
    }  # fmt: skip


@lru_cache(maxsize=1)
def gallery() -> dict[str, Figure]:
    """Every chart that is registered, and every figure function of the probes."""
    return {
        **lens_figures(), "leap": latent().figure("leap"), "floors": latent().figure("floors"),
        "floors of embeddings": near().figure("floors"), "rates": senses().figure("rates"),
        "judged": judged().figure("judged"), **routing_figures(),
        "adapters": adapted().figure("adapters"),
        "adapters by projection": adapted().figure("adapters", by="projection"),
        **picture_figures(), "token_drift": drifted().figure("token_drift"),
        "belief": believed().figure("belief"), **superposition_figures(), **feature_figures(), **value_figures(),
    }  # fmt: skip
