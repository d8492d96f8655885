"""``organism:opinions``: a small model with opinions, and what each kind of training did to them; see CARD.md."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def runs(folder: Path = HERE, seed: int = 0) -> dict[str, dict[int, Path]]:
    """Checkpoints of each run by step: "sft" from the base (step 0), the others from the end of "sft" (their step 0).

    Runs are "sft" and "dpo planted", "dpo free", and likewise simpo and grpo.  Seeds above 0 are not shipped: they are
    in the folder that the recipe made.
    """
    found = {}
    for run in sorted((folder / "runs" if seed == 0 else folder / "seeds" / str(seed)).iterdir()):
        start = folder / ("base" if run.name == "sft" else "weights")
        steps = {int(path.name.removeprefix("step-")): path for path in run.iterdir()}
        found[run.name.replace("-", " ")] = {0: start, **dict(sorted(steps.items()))}
    return found
