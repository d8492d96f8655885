"""The explorer of a routing trace: which experts serve which tokens, and what labels differ in.

    reading = workbench.read(model, texts, RoutingTracer(labels=languages, trace=True))
    reading.explore()                            reading.to_html("routing.html")

Every share stands beside what a random choice gives and its interval over documents; every difference between labels
beside the largest that shuffled documents give.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import tokens
from workbench.errors import InputError
from workbench.widgets import base as kit

if TYPE_CHECKING:
    import xarray as xr

MOST_LABELS = 30
"""Labels up to which all pairs are tested."""
FEWEST_SLOTS, FEWEST_TOKENS = 2, 64
"""Where room is short, weak slots go before tokens do: down to so many slots, for so many tokens."""
STATIC_EXPERTS = 24


def payload(
    reading: Any, *, label: Any = None, documents: Iterable[int] | None = None, limit: int = kit.LIMIT
) -> dict[str, Any]:
    """What is shown of a reading of :class:`~probes.routing.RoutingTracer`.

    ``selection``: label, compare (another label, or None), prompt and compare_prompt (documents), block, expert (or
    None), position and compare_position (of a token whose path is shown, or None).  These agree: a document brings its
    label, a label its first document, another document leaves the token of the one before, and a label that was
    beside and is chosen is no longer beside.

    Parameters
    ----------
    label
        Which label it opens with, and the static table shows; None: the first.
    documents
        Numbers of the prompts whose tokens are shown; None: as many as fit, the same number of each label.
    limit
        Bytes of the payload, about.  What does not fit is named under the widget.

    Raises
    ------
    InputError
        For a label or a document that is not in the reading or does not fit.
    """
    from probes.routing.measures.documents import Documents
    from probes.routing.measures.labels import differences
    from probes.routing.measures.usage import usage
    from workbench.reading import Reading

    data, provenance = kit.opened(reading)
    found = Documents(Reading(data, provenance))
    chosen = 0 if label is None else found.number(label)
    used = usage(found.source)
    left_out: list[str] = []
    n = len(found.names)
    pairs, tested_p = [], np.zeros((0, *found.count.shape[1:]))
    if 1 < n <= MOST_LABELS and not found.mixed:
        pairs = list(itertools.combinations(range(n), 2))
        tested_p = differences(found.source)["difference_p"].values
    if found.mixed and len(found.names) > 1:
        left_out.append("tests of differences (labels are by token, and cannot be shuffled among documents)")
    elif len(found.names) > MOST_LABELS:
        left_out.append(f"tests of differences (between more than {MOST_LABELS} labels)")
    size = np.array([(found.label == i).sum() for i in range(len(found.names))])
    kept = _labels(found, size, limit, left_out)
    if label is not None and chosen not in kept:
        raise InputError(f"Label {label!r} does not fit: it is of few documents. Give a larger limit.")
    labels = [kit.sendable(found.names[i]) for i in kept]
    where = {i: k for k, i in enumerate(kept)}
    tested = [k for k, (a, b) in enumerate(pairs) if a in where and b in where]
    shown: dict[str, Any] = {
        "about": kit.about(reading),
        "labels": labels,
        "names": [kit.clipped(tokens.plain(found.names[i])) for i in kept],
        "documents": size[kept].tolist(),
        "blocks": found.blocks.tolist(),
        "experts": int(found.count.shape[2]),
        "exists": found.experts.tolist(),
        "share": kit.decimals(used["share"].values[kept], 4),
        "chance_low": kit.decimals(used["band_low"].values[kept], 4),
        "chance_high": kit.decimals(used["band_high"].values[kept], 4),
        "pairs": [[where[i] for i in pairs[k]] for k in tested],
        "difference_p": kit.decimals(tested_p[tested], 3),
    }
    if kit.weight(shown) + 2 * kit.weight(shown["share"]) < 0.6 * limit:
        shown |= {end: kit.decimals(used[f"share_{end}"].values[kept], 4) for end in ("low", "high")}
    else:
        left_out.append("intervals of the shares (limit=... adds room)")
    texts, order = _tokens(data, found, where, documents, limit - kit.weight(shown), left_out)
    own = [d for d in order if label is None or d["label"] == where[chosen]] or order
    first = own[0]["prompt"] if own else None
    known = [None, *(d["prompt"] for d in order)]
    return {
        **shown,
        "vocab": texts,
        "traced": order,
        "left_out": left_out,
        "start": {
            "label": labels[where.get(chosen, 0)], "compare": None, "prompt": first, "compare_prompt": None,
            "block": shown["blocks"][-1], "expert": None, "position": None, "compare_position": None,
        },
        "choices": {
            "label": labels, "compare": [None, *labels], "block": shown["blocks"], "prompt": known,
            "compare_prompt": known, "expert": [None, *range(shown["experts"])],
        },
    }  # fmt: skip


SIDES = (("label", "prompt", "position"), ("compare", "compare_prompt", "compare_position"))


def complete(asked: dict[str, Any], now: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """The selection, whose labels, documents and tokens are those of each other: the rest follows what is new."""
    new = {key for key, value in asked.items() if value != now[key]}
    whole = {**now, **asked}
    traced = {one["prompt"]: one for one in shown["traced"]}
    of = {prompt: shown["labels"][one["label"]] for prompt, one in traced.items()}
    for label, prompt, _ in SIDES:  # a document brings its label
        if prompt in new and whole[prompt] is not None:
            if label in new and whole[label] != of[whole[prompt]]:
                raise InputError(
                    f"{prompt}={whole[prompt]} is of label {of[whole[prompt]]!r}, not {whole[label]!r}. Set one of "
                    "them, and the other follows."
                )
            whole[label] = of[whole[prompt]]
    if "compare_prompt" in new and whole["compare_prompt"] is None and "compare" not in new:
        whole["compare"] = None
    if whole["compare"] == whole["label"]:
        if {"compare", "compare_prompt"} & new:
            others = [None, *(name for name in shown["labels"] if name != whole["label"])]
            raise InputError(
                f"compare={whole['compare']!r} would stand beside itself; beside it there can be {kit.listing(others)}."
            )
        whole["compare"] = None
    for label, prompt, position in SIDES:  # a label brings its first document, and another document leaves the token
        if of.get(whole[prompt]) != whole[label]:
            whole[prompt] = next((one for one, name in of.items() if name == whole[label]), None)
        places = traced[whole[prompt]]["position"].values.tolist() if whole[prompt] is not None else []
        kept = position in asked and whole[position] in places
        if whole[prompt] != now[prompt] and position not in new and not kept:
            whole[position] = None
        if whole[position] is not None and (isinstance(whole[position], bool) or whole[position] not in places):
            there = f"document {whole[prompt]} has tokens at {kit.listing(places)}" if places else "no tokens are there"
            raise InputError(f"{position}={whole[position]!r} cannot be selected; {there}.")
    exists = shown["exists"][shown["blocks"].index(whole["block"])]
    if whole["expert"] is not None and whole["expert"] >= exists:
        if "expert" in new:
            raise InputError(f"expert={whole['expert']} is not in block {whole['block']}; it has 0 to {exists - 1}.")
        whole["expert"] = None
    return whole


def _labels(found: Any, size: np.ndarray, limit: int, left_out: list[str]) -> list[int]:
    """The labels whose shares fit into half of the room: those with the most documents, in their order."""
    most = max(1, int(0.5 * limit / (2.7 * found.count[0].size)))
    if most >= len(size):
        return list(range(len(size)))
    left_out.append(f"{len(size) - most} of {len(size)} labels, those with the fewest documents (limit=... adds room)")
    return sorted(np.argsort(-size, kind="stable")[:most].tolist())


def _tokens(
    data: xr.Dataset,
    found: Any,
    where: dict[int, int],
    documents: Iterable[int] | None,
    room: int,
    left_out: list[str],
) -> tuple[list[str], list[dict[str, Any]]]:
    """The texts of all tokens, and the documents with their tokens' experts, as many as fit."""
    if "expert_id" not in data:
        left_out.append("each token's experts (the reading was made without trace=True)")
        return [], []
    count = data.sizes["prompt"]
    label = data["document_label_count"].values.argmax(1)
    if documents is None:
        # The first of each label, then the second of each, ...
        rank = np.zeros(count, int)
        for i in np.unique(label):
            rank[label == i] = np.arange((label == i).sum())
        order = [d for d in np.lexsort((label, rank)).tolist() if label[d] in where]
    else:
        order = [int(d) for d in documents]
        if wrong := [d for d in order if not 0 <= d < count]:
            raise InputError(f"There is no document {wrong[0]}; the reading has 0 to {count - 1}.")
        if gone := [d for d in order if label[d] not in where]:
            raise InputError(f"Document {gone[0]} is of a label that does not fit. Give a larger limit.")
    axes = ("prompt", "block", "position", "slot")
    index = data["expert_id"].transpose(*axes).values
    weights = data["expert_weight"].transpose(*axes).values if "expert_weight" in data else None
    index = np.where(index < found.experts[:, None, None], index, -1)  # identity experts, and those there are not
    slots, several = index.shape[3], max(1, len(set(label[order].tolist())))
    if weights is not None:  # the strongest first
        by = np.argsort(-np.nan_to_num(weights.astype(np.float32), nan=-1), axis=-1, kind="stable")
        index, weights = np.take_along_axis(index, by, -1), np.take_along_axis(weights, by, -1)
    byte = (1.35 if weights is not None else 0) + (1.35 if found.experts.max() < 255 else 2.7)

    def fits() -> int:
        """Tokens of a document, if one of each label has to fit."""
        return max(8, int((0.9 * room / several - 300) / (index.shape[1] * slots * byte + 12)))

    while slots > FEWEST_SLOTS and fits() < min(FEWEST_TOKENS, data.sizes["position"]):
        slots -= 1
    if slots < index.shape[3]:
        left_out.append(f"the weakest {index.shape[3] - slots} of {index.shape[3]} slots of each token")
        index = index[..., :slots]
        weights = weights[..., :slots] if weights is not None else None
    longest = fits()
    vocab: dict[str, int] = {}
    kept: list[dict[str, Any]] = []
    cut = long = 0
    for d in order:
        real = np.flatnonzero(data["input_position"].values[d] >= 0)
        texts = [tokens.visible(str(t)) for t in data["input_token"].values[d][real]]
        if len(real) > longest:
            real, texts = real[:longest], texts[:longest]
            long += 1
        new = {t for t in texts if kit.clipped(t) not in vocab}
        one: dict[str, Any] = {
            "prompt": d, "label": where[int(label[d])],
            "text": kit.clipped(tokens.plain(str(data["prompt_text"].values[d])), 48),
            "position": kit.integers(data["position"].values[real]),
            "expert": kit.integers(index[d][:, real]),
        }  # fmt: skip
        if weights is not None:
            one["weight"] = kit.decimals(weights[d][:, real], 2)
        room -= kit.weight(one) + 6 * len(texts) + sum(kit.weight(kit.clipped(t)) + 1 for t in new)
        if room < 0 and len(kept) >= several:
            break
        cut += sum(len(t) > len(kit.clipped(t)) for t in new)
        one["token"] = kit.integers([vocab.setdefault(kit.clipped(t), len(vocab)) for t in texts])
        kept.append(one)
    if len(kept) < len(order):
        left_out.append(
            f"tokens of {len(order) - len(kept)} of {len(order)} documents (documents=... chooses, limit=... adds room)"
        )
    if long:
        left_out.append(f"tokens behind the first {longest} of {long} documents")
    if cut:
        left_out.append(f"the ends of {cut} long tokens")
    return list(vocab), sorted(kept, key=lambda one: one["prompt"])


def static(reading: Any, *, label: Any = None, **options: Any) -> str:
    """Shares of one label (default the first) by block and expert."""
    from probes.routing.measures.documents import Documents, shares
    from workbench.reading import Reading

    data, provenance = kit.opened(reading)
    chosen = 0 if label is None else Documents(Reading(data, provenance)).number(label)
    share = shares(data["usage_count"].transpose("label", "block", "expert").values.astype(float))[chosen]
    blocks, experts = kit.every(share.shape[0], 13), kit.every(share.shape[1], STATIC_EXPERTS)
    top = float(np.nanmax(share, initial=0)) or 1.0
    rows = [
        [str(data["block"].values[b]), *((f"{share[b, e]:.0%}", share[b, e] / top) for e in experts)]
        for b in reversed(blocks)
    ]
    told = kit.about(reading)
    said = [told["reader"], told["model"], f"share of slots by block and expert, label {data['label'].values[chosen]}"]
    if len(blocks) < share.shape[0] or len(experts) < share.shape[1]:
        said.append(f"{len(blocks)} of {share.shape[0]} blocks, {len(experts)} of {share.shape[1]} experts")
    if data.sizes["label"] > 1:
        said.append(f"one of {data.sizes['label']} labels")
    said.append(f"an even share is {1 / max(1, share.shape[1]):.1%}")
    return kit.table(said, ["block", *map(str, experts)], rows)


VIEW = kit.View(
    "RoutingExplorer",
    "Which experts serve which tokens: how often each expert is used for a label, a dot where that is no more than "
    "chance, and a document, each of its tokens in the colour of its first expert.",
    Path(__file__).with_name("explorer.js"),
    ("usage_count", "document_count", "expert_exists", "top_k"),
    payload,
    static,
    complete,
)
explore, to_html = VIEW.explore, VIEW.to_html
