"""Four ways of thinking about the same graphs, judged alike: the study of ``organism:searcher``.

    python -m probes.superposition.searcher [--card] [--problems N]

Continuous thoughts learned from scratch, continuous thoughts put into a chain-of-thought model, that model's own soft
thoughts without training, and pause tokens in the place of thoughts (after arXiv 2604.06374, 2505.12514).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import workbench
from probes.superposition.belief import CandidateBelief
from probes.superposition.held import frontier, mass
from probes.superposition.problems import Problem
from probes.superposition.thoughts import ContinuousThought, ForcedMixture, Policy, SoftThought, think
from probes.superposition.used import use
from probes.superposition.verdicts import verdict
from workbench.demo import Shown
from workbench.model import Model
from workbench.organisms.searcher import regimes
from workbench.organisms.searcher.grammar import THOUGHTS, problems, prompt
from workbench.organisms.searcher.recipe import HELD_OUT_SEED

END = "="
CALLED = {
    "scratch": "continuous thoughts, from scratch", "tuned": "chain of thought, tuned to continuous thoughts",
    "chain": "chain of thought, soft thoughts without training", "pause": "pause tokens, from scratch",
}  # fmt: skip


def policy(regime: str, model: Model) -> Policy:
    """How a regime thinks."""
    if regime == "pause":
        pause = model.tokenizer.convert_tokens_to_ids("<pause>")
        return ForcedMixture([[pause]] * THOUGHTS)
    if regime == "chain":
        return SoftThought(THOUGHTS, temperature=1.0, top_k=None, top_p=1.0, keep=10)
    return ContinuousThought(THOUGHTS)


class Questions:
    """Held-out problems: the records, what the probes call them, and the prompts."""

    def __init__(self, n: int, seed: int = HELD_OUT_SEED) -> None:
        self.records = list(problems(n, seed))
        size = 1 + max(v for r in self.records for e in r["edges"] for v in e)
        self.names = [[f"n{i}" for i in range(size)]] * n
        self.problems = [Problem.of({**r, "names": own}) for r, own in zip(self.records, self.names, strict=True)]
        self.prompts = [prompt(r) for r in self.records]
        self.mirrored = [prompt({**r, "root": _other_root(r)}) for r in self.records]


def _other_root(record: dict[str, Any]) -> int:
    """The root of the other half, from which the negative target can be reached."""
    ends = {b for _, b in record["edges"]}
    (other,) = {a for a, _ in record["edges"]} - ends - {record["root"]}
    return other


def judged(model: Model, regime: str, questions: Questions, seed: int = 0) -> dict[str, Any]:
    """Belief, what is held, what is used, and the verdict, of one model."""
    how = policy(regime, model)
    belief = CandidateBelief(questions.names)
    found = think(model, questions.prompts, how, readers=[belief], then=END, seed=seed)
    whole = found.readings[0]
    # Places 0 to THOUGHTS - 1: the states of which the thoughts are made.
    logit = whole.isel(layer=-1).sel(position=slice(0, THOUGHTS - 1))
    held = frontier(logit, questions.problems, seed=seed)
    used = use(
        model, questions.prompts, questions.problems, questions.names, how, then=END, mirrored=questions.mirrored,
        seed=seed,
    )  # fmt: skip
    return {
        "belief": whole, "held": held, "mass": mass(logit, questions.problems), "used": used,
        "verdict": verdict(held, used), "thoughts": found.data,
    }  # fmt: skip


def study(n: int = 500) -> dict[str, Any]:
    """The numbers of the card."""
    questions = Questions(n)
    found = {}
    for regime, path in regimes().items():
        own = judged(workbench.load(str(path)), regime, questions)
        used, held = own["used"], own["held"]

        def rounded(table: Any, name: str, **at: Any) -> list[float]:
            return [
                round(float((table[x].sel(**at) if at else table[x]).values), 4)
                for x in (name, f"{name}_low", f"{name}_high")
            ]

        found[regime] = {
            "verdict": own["verdict"].word, "sure": own["verdict"].sure, "decided_by": own["verdict"].decided_by,
            "evidence": list(own["verdict"].evidence),
            "accuracy": {str(c): rounded(used, "accuracy", condition=c) for c in used["condition"].values},
            "free_accuracy": {str(c): rounded(used, "free_accuracy", condition=c) for c in used["condition"].values},
            "effect": {str(c): rounded(used, "effect", condition=c) for c in used["condition"].values},
            **{
                name: [round(float(v), 4) for v in held[name].values]
                for name in (
                    "auc", "auc_null", "auc_other", "auc_within", "auc_without_top", "auc_within_without_top",
                    "evenness", "held", "size", "effective", "frontier_mass",
                )
            },
        }  # fmt: skip
    return {"problems": n, "thoughts": THOUGHTS, "regimes": found}


def text(found: dict[str, Any]) -> str:
    """The study as a part of the card."""
    conditions = ("plain", "deleted", "mean", "resampled", "mirrored", "edit optimal", "edit not reachable")

    def share(x: list[float]) -> str:
        return f"{x[0]:.2f} [{x[1]:.2f}, {x[2]:.2f}]"

    rows = "\n".join(
        f"| {CALLED[r]} | "
        + " | ".join(share(own["accuracy"][c]) for c in conditions)
        + f" | {own['free_accuracy']['plain'][0]:.2f} |"
        for r, own in found["regimes"].items()
    )
    held = "\n".join(
        f"| {CALLED[r]} | " + " | ".join(
            f"{a:.2f} ({n:.2f}), {r:.2f}, {e:.2f}, {m:.2f}"
            for a, n, r, e, m in zip(
                *(own[x] for x in ("auc", "auc_null", "auc_without_top", "evenness", "frontier_mass")), strict=True
            )
        ) + " |"
        for r, own in found["regimes"].items()
    )  # fmt: skip
    said = "\n\n".join(
        f"**{CALLED[r]}: {own['verdict']}{'' if own['sure'] else ' (not sure)'}.** Decided by: {own['decided_by']}\n"
        + "\n".join(f"* {line}" for line in own["evidence"])
        for r, own in found["regimes"].items()
    )
    places = " | ".join(f"after {t} thoughts" for t in range(found["thoughts"]))
    return f"""
### Is a search held in the thoughts, and used?

{found["problems"]} held-out problems; 95 % intervals over problems. Accuracy is between the target and the other
candidate alone (chance 0.5), with the thoughts as they are, deleted, in their mean over other problems, of another
problem, of the same graph asked from the other root (where the other candidate is right), and robbed of one node: one
on the way to the target, or one out of reach. Last: the whole vocabulary's first choice is the target.

| regime | {" | ".join(conditions)} | free |
|---|{"---|" * (len(conditions) + 1)}
{rows}

Of the state of which the next thought is made: how well the frontier (all nodes one step further) is told from other
nodes (AUC; in brackets in other problems' thoughts), the same without its highest node, how evenly it is held (0: one
node, 1: all alike), and its share of belief:

| regime | {places} |
|---|{"---|" * found["thoughts"]}
{held}

{said}

{found.get("beside", "")}
"""


PUBLISHED = """Beside the published numbers (arXiv 2604.06374; ProsQA of 23 nodes; accuracy with and without thoughts).
From scratch, two layers of width 768: 94.5 % and 13.8 %, a free choice; here 99.8 % and 51 %. That such
a model needs its thoughts, and holds the frontier in them, appears here. Tuned from a chain of thought,
GPT-2: 99.0 % and 99.0 %. That does not appear: here the tuned model needs its thoughts, and the branch
in them, though it holds the frontier less evenly with every step. Two blocks cannot search these graphs
without thoughts (the pause control stays at chance), so there is no way around them; a deeper model may
have one. Soft thoughts without training are worth less than the same model's own chains (69 % beside 82
%); they hold two nodes where the model hesitates between two, and less after that. The first state of
all four holds the root's neighbours: that is read off the prompt, before any thought, and only the
later places tell the regimes apart: pauses do not hold the frontier there. Pauses are one token for
all problems, so that swapping them changes nothing by construction; what pauses are worth is the
control's accuracy."""
"""Said of the shipped weights; tests/workbench/test_organism_searcher.py holds it to their numbers."""


def example(out: Path) -> Shown:
    """For ``workbench demo``: what is held in the thoughts of three regimes, and used, with an explorer of each."""
    from probes.superposition import explorer

    questions, pages, told, uses = Questions(60), {}, [], []
    for regime in ("scratch", "tuned", "chain"):
        own = judged(workbench.load(str(regimes()[regime]), progress=False), regime, questions)
        uses.append(own["used"])
        pages[CALLED[regime].split(", ")[1].capitalize()] = explorer.to_html(
            own["belief"].isel(prompt=slice(8)), out / f"belief-{regime}.html", f"organism:searcher · {CALLED[regime]}",
            problems=questions.problems[:8],
        )  # fmt: skip
        lost = own["used"].data.sel(condition=["edit optimal", "edit not reachable"])
        ends = np.stack([lost[f"effect{end}"].values for end in ("", "_low", "_high")], 1).ravel()
        told.append(f"{CALLED[regime].capitalize()}: {own['verdict'].word}; " + (
            "{:+.1f} [{:+.1f}, {:+.1f}] and {:+.1f} [{:+.1f}, {:+.1f}]".format(*ends)
        ))  # fmt: skip
    return Shown(
        "Do thoughts hold several branches of a search at once, and does the answer use them?",
        f"Over {len(questions.problems)} graphs, with the change of the answer's log-odds in nats [95%] without its "
        "branch in the thoughts, and without a node out of reach.\n" + "\n".join(told),
        uses[0], "uses", pages=pages, seen="Change of the answer's log-odds when thoughts are deleted, exchanged or "
        f"robbed of a node, and how often it is right then ({CALLED['scratch']}).",
    )  # fmt: skip


def main() -> None:
    from workbench.organisms import folder
    from workbench.organisms.searcher.recipe import write_card

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", action="store_true", help="write the numbers into the organism's card")
    parser.add_argument("--problems", type=int, default=500)
    given = parser.parse_args()
    found = json.loads(json.dumps(study(given.problems)))
    found["beside"] = PUBLISHED
    print(text(found))
    if given.card:
        home = folder("searcher").parent
        card = json.loads((home / "card.json").read_text())
        write_card(home, {**card, "superposition": {**found, "text": text(found)}})


if __name__ == "__main__":
    main()
