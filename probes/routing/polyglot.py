"""What routing does in ``organism:polyglot`` as it learns five languages: a multilingual study, with its nulls.

    python -m probes.routing.polyglot [--card]

Questions of arXiv 2605.29714: do languages part in the last blocks as multilingual training goes on; are languages that
share words routed more alike; how soon is the final routing there?  And one that it leaves open: are the experts that
seem to be a language's missed by it?
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import workbench
from probes.routing import RoutingTracer, effects, intervene, measures
from workbench.demo import Shown
from workbench.organisms import folder
from workbench.organisms.polyglot import checkpoints
from workbench.organisms.polyglot.grammar import LANGUAGES, documents
from workbench.organisms.polyglot.recipe import HELD_OUT_SEED, write_card
from workbench.reading import Reading


def texts(each: int) -> tuple[list[str], list[str], list[int]]:
    """Parallel held-out documents: texts, their languages, and what each says."""
    found = [text for language in LANGUAGES for text in documents(each, language, HELD_OUT_SEED)]
    return found, [x for x in LANGUAGES for _ in range(each)], list(range(each)) * len(LANGUAGES)


def traced(model: Any, each: int) -> Reading:
    """A full trace of them."""
    inputs, labels, _ = texts(each)
    return workbench.read(model, inputs, RoutingTracer(labels, trace=True, scores=True), progress=False)


def study(each: int = 40, draws: int = 200) -> dict[str, Any]:
    """The numbers of the card."""
    inputs, labels, meanings = texts(each)
    models = {step: workbench.load(str(path)) for step, path in checkpoints().items()}
    found = {step: traced(model, each) for step, model in models.items()}
    model, last = models[max(found)], found[max(found)]
    with intervene(model, jitter=BFLOAT16):
        noisy = traced(model, each)
    apart = {step: measures.divergence(reading, draws=draws) for step, reading in found.items()}
    shared = measures.overlap(last, draws=20)
    kept = measures.saturation(list(found.values()), list(found), floor=noisy)
    same = measures.parallel(last, meanings, draws=draws)
    final = apart[max(found)]

    def rounded(values: Any) -> list[float]:
        return [round(float(v), 4) for v in np.ravel(values)]

    return {
        "documents": len(inputs),
        "blocks": last.data["block"].values.tolist(),
        "mean_jsd_nats": {step: rounded(x["mean_jsd"]) for step, x in apart.items()},
        "mean_jsd_null": {step: rounded(x["mean_jsd_null"]) for step, x in apart.items()},
        "mean_jsd_low": rounded(final["mean_jsd_low"]), "mean_jsd_high": rounded(final["mean_jsd_high"]),
        "mean_jsd_p": rounded(final["mean_jsd_p"]),
        "overlap_pearson": rounded(shared["pearson"].sel(measure="jaccard")),
        "overlap_mantel_p": rounded(shared["mantel_p"].sel(measure="jaccard")),
        "pairs": {
            f"{a}-{b}": rounded(final["jsd"].sel(label=a, label_2=b))
            for i, a in enumerate(LANGUAGES) for b in LANGUAGES[i + 1 :]
        },
        **{
            name: {f"{a}-{b}": rounded(same[value].sel(label=a, label_2=b)) for a, b in ("ab", "ac", "cd", "ce")}
            for name, value in (("translations", "divergence"), ("translations_null", "divergence_null"))
        },
        "saturation": {int(step): rounded(kept["saturation"].sel(checkpoint=step)) for step in found},
        "saturation_null": rounded(kept["saturation_null"]), "saturation_floor": rounded(kept["saturation_floor"]),
        "experts": claims(model, last, inputs, labels, draws),
    }  # fmt: skip


def claims(model: Any, reading: Reading, inputs: list[str], labels: list[str], draws: int) -> dict[str, Any]:
    """Each language's experts by activation gap, and what dropping them costs its documents."""
    plan = measures.export(measures.select(reading, draws=5 * draws))["selected"]
    chosen = {
        x: ([t for t, y in zip(inputs, labels, strict=True) if x == y], {int(b): e for b, e in own.items() if e})
        for x, own in plan.items() if any(own.values())
    }  # fmt: skip
    # Of eight experts few are near in load: a star needs more sets than those, and the near ones stand beside.
    table = effects(model, chosen, caliper=1, control="untrained").data
    near = effects(model, chosen, sets=39, routes=0).data
    for name in ("sets", "p_random"):
        table[f"{name}_near"] = near[name]
    for own, name in ((table, "slots_random"), (near, "slots_random_near")):
        table[name] = own["slots_random"].mean("draw")
    intervals = [f"{name}{end}" for name in ("delta", "excess", "replaced") for end in ("", "_low", "_high")]
    names = (*intervals, "q_random", "delta_untrained", "slots", *(
        f"{name}{end}" for end in ("", "_near") for name in ("p_random", "sets", "slots_random")
    ))  # fmt: skip
    return {
        str(x): {
            "experts": chosen[x][1], **{name: round(float(table[name].sel(claim=x)), 4) for name in names},
            "backed": bool(table["backed"].sel(claim=x)),
        }
        for x in chosen
    }  # fmt: skip


BFLOAT16 = 2.0**-8
"""Relative size of the rounding of bfloat16."""

VERDICT = """What of the study appears here: languages part most in the last block at the end, and pairs that share
words are routed most alike in every block (p by the 120 permutations that five languages allow; 0.04 in three blocks,
0.07 in block 1). What does not: they do not part in the last block alone. The first block parts them nearly as much (it
sees the words themselves), the middle least, as in studies of parallel text; and the one-language base, to which four
languages are noise, already routes them apart. Translations are routed no more alike than other sentences, unless they
share words: what these routers see is words and language. And not every expert that seems to be a language's is missed
by it. A language's experts are its most used ones: of the eight of a block few are near in load (within a factor of
two, a has 15 other sets and d 11), too few for 5 % over five claims. Beside sets of any load, which lose 46 % (a)
to 69 % (e) as many slots, dropping those of a and d costs more than any other set, and those of c more than nearly
all: these are missed (q 0.03), and slot for slot they cost three times (a), two and a half times (d) and one and a
half times (c) what others do. Beside sets near in load, too, those of a and d cost the most. Those of b and e are
not missed more than others. An untrained twin loses nothing by any of them (0.003 nats or less)."""
"""Said of the shipped weights; tests/workbench/test_organism_polyglot.py holds it to their numbers."""


def text(found: dict[str, Any]) -> str:
    """The study as a part of the card."""
    blocks = found["blocks"]
    head = "| step | " + " | ".join(f"block {b}" for b in blocks) + " |\n|---|" + "---|" * len(blocks)
    apart = "\n".join(
        f"| {step} | "
        + " | ".join(f"{v:.3f} ({n:.3f})" for v, n in zip(own, found["mean_jsd_null"][step], strict=True))
        + " |"
        for step, own in found["mean_jsd_nats"].items()
    )
    kept = "\n".join(
        f"| {step} | " + " | ".join(f"{v:.2f}" for v in own) + " |" for step, own in found["saturation"].items()
    )
    pairs = ", ".join(f"{pair} {own[-1]:.3f}" for pair, own in found["pairs"].items())
    r = ", ".join(
        f"block {b}: {x:.2f} (p = {p:.3f})"
        for b, x, p in zip(blocks, found["overlap_pearson"], found["overlap_mantel_p"], strict=True)
    )
    same = "; ".join(
        f"{pair} " + ", ".join(f"{x:.3f} ({n:.3f})" for x, n in zip(own, found["translations_null"][pair], strict=True))
        for pair, own in found["translations"].items()
    )

    def range_(c: dict[str, Any], name: str) -> str:
        return f"{c[name]:.3f} [{c[f'{name}_low']:.3f}, {c[f'{name}_high']:.3f}]"

    def reached(c: dict[str, Any], end: str = "") -> str:
        sets = c[f"sets{end}"]
        return f"{round((1 + sets) * c[f'p_random{end}'] - 1)} of {sets:.0f} ({c[f'slots_random{end}']:.0f})"

    backed = "\n".join(
        f"| {x}{' ★' * c['backed']} | {', '.join(f'{b}.{e}' for b, own in c['experts'].items() for e in own)} | "
        f"{range_(c, 'delta')} | {c['delta_untrained']:.4f} | {range_(c, 'excess')} | {c['slots']:.0f} | "
        f"{reached(c)} | {reached(c, '_near')} | {range_(c, 'replaced')} |"
        for x, c in found["experts"].items()
    )
    return f"""
### Routing, over {found["documents"]} parallel held-out documents

Mean Jensen-Shannon divergence between languages in nats; in brackets what languages that differ in nothing would have:

{head}
{apart}

At the end, in the last block, by pair: {pairs}. Correlation of divergence with shared words (Jaccard), p by Mantel's
permutations over five languages: {r}.

Translations beside each other, document by document, in each block (divergence over mean entropy; in brackets paired
at random with others): {same}.

Share of the final experts that a token has already (chance {found["saturation_null"][0]:.2f}; the final checkpoint with
noise of bf16's size has {min(found["saturation_floor"]):.3f} or more):

{head}
{kept}

Experts that the activation gap gives a language (thresholds that chance passes in 5 % of analyses), and what dropping
them costs that language, in nats a token with 95 % over documents; in an untrained twin; and above other sets of as
many, of any load. Then how many of those sets cost as much, with the slots that they lose, and how many of those near
in load (within a factor of two). Last, the cost when the same slots go to random others. ★: missed, at a false
discovery rate over sets of 5 %.

| language | experts (block.expert) | cost | untrained | above others | slots | as costly | near in load | at random |
|---|---|---|---|---|---|---|---|---|
{backed}

{found.get("verdict", "")}
"""


def example(out: Path) -> Shown:
    """For ``workbench demo``: in which block five languages are routed most apart, and the explorer of their tokens."""
    from probes.routing import explorer

    reading = traced(workbench.load("organism:polyglot"), 8)
    apart = measures.divergence(reading, draws=799)
    beyond = int((apart["mean_jsd_p"] <= 0.05).sum())
    said = [
        f"block {int(own['block'])} by {float(own['mean_jsd_corrected']):.3f} nats [{float(own['mean_jsd_low']):.3f}, "
        f"{float(own['mean_jsd_high']):.3f}] (shuffled labels: {float(own['mean_jsd_null']):.3f})"
        for own in (apart.data.isel(block=i) for i in apart["mean_jsd_corrected"].values.argsort()[[-1, 0]])
    ]
    page = explorer.to_html(reading, out / "routing.html", "organism:polyglot · which experts serve which language")
    return Shown(
        "Do five languages go to different experts?",
        f"In {beyond or 'none'} of {apart.sizes['block']} blocks they differ by more than documents with shuffled "
        f"labels (p ≤ 0.05), most in {said[0]} and least in {said[1]}.",
        apart, "layers", pages={"Explore tokens and experts": page},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", action="store_true", help="write the numbers into the organism's card")
    given = parser.parse_args()
    home = folder("polyglot").parent
    card = json.loads((home / "card.json").read_text())
    found = json.loads(json.dumps(study()))
    found["verdict"] = VERDICT
    print(text(found))
    if given.card:
        write_card(home, {**card, "routing": {**found, "text": text(found)}})


if __name__ == "__main__":
    main()
