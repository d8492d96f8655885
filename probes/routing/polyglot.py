"""What routing does in ``organism:polyglot`` as it learns five languages: a multilingual study, with its nulls.

    python -m probes.routing.polyglot [--card]

Three questions of arXiv 2605.29714: do languages part in the last blocks as multilingual training goes on; are
languages that share words routed more alike; how soon is the final routing there?
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

import workbench
from probes.routing import RoutingTracer, measures
from workbench.organisms import folder
from workbench.organisms.polyglot import checkpoints
from workbench.organisms.polyglot.grammar import LANGUAGES, documents
from workbench.organisms.polyglot.recipe import HELD_OUT_SEED, write_card
from workbench.reading import Reading


def traces(each: int = 40) -> dict[int, Reading]:
    """A full trace of parallel held-out documents at every checkpoint."""
    texts = [text for language in LANGUAGES for text in documents(each, language, HELD_OUT_SEED)]
    labels = [language for language in LANGUAGES for _ in range(each)]
    found = {}
    for step, path in checkpoints().items():
        model = workbench.load(str(path))
        found[step] = workbench.read(model, texts, RoutingTracer(labels, trace=True), progress=False)
    return found


def study(each: int = 40, draws: int = 200) -> dict[str, Any]:
    """The numbers of the card."""
    found = traces(each)
    last = found[max(found)]
    apart = {step: measures.divergence(reading, draws=draws) for step, reading in found.items()}
    shared = measures.overlap(last, draws=20)
    kept = measures.saturation(list(found.values()), list(found))
    final = apart[max(found)]

    def rounded(values: Any) -> list[float]:
        return [round(float(v), 4) for v in np.ravel(values)]

    return {
        "documents": each * len(LANGUAGES),
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
        "saturation": {int(step): rounded(kept["saturation"].sel(checkpoint=step)) for step in found},
        "saturation_null": rounded(kept["saturation_null"]),
    }  # fmt: skip


VERDICT = """What of the study appears here: languages part most in the last block at the end, and pairs that share
words are routed most alike, in every block (p by the 120 permutations that five languages allow). What does not:
they do not part in the last block alone. The first block parts them nearly as much (it sees the words themselves),
the middle least, as in studies of parallel text; and the one-language base, to which four languages are noise, already
routes them apart."""
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
    return f"""
### Routing, over {found["documents"]} parallel held-out documents

Mean Jensen-Shannon divergence between languages in nats; in brackets with languages shuffled among documents:

{head}
{apart}

At the end, in the last block, by pair: {pairs}. Correlation of divergence with shared words (Jaccard), p by Mantel's
permutations over five languages: {r}.

Share of the final experts that a token has already (chance {found["saturation_null"][0]:.2f}):

{head}
{kept}

{found.get("verdict", "")}
"""


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
