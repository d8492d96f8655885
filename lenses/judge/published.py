"""The published agreement of a judge with people, recomputed from the data (LatentLens, arXiv 2602.00462).

    python -m lenses.judge.published FOLDER        the tables
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from lenses.judge import kappa as agreements
from lenses.judge.captions import stems
from workbench.errors import ReadingError
from workbench.reading import Reading
from workbench.stats import Design, p_value
from workbench.variables import about, described

FILES = ("data.json", "humans.json", "judge.json")
LISTS = ("concrete_words", "abstract_words", "global_words")
MAJORITY = 0.5
"""People call a patch interpretable where this share of them does."""
FEWEST = 21
"""Two annotators are compared on so many patches or more."""
SCORERS = ("judge", "people", "captions")
VARIABLES = {
    **agreements.VARIABLES,
    "kappa": about("Cohen's kappa", better="high", short_name="kappa"),
    "pair": about("who are compared", role="label"),
    "scorer": about("who says which words fit", role="label"),
    "model": about("model whose words were judged", role="label"),
    "shuffled": about("what captions are shuffled among", role="label"),
    "rate": about("share of patches with a word that fits", better="high", short_name="interpretable"),
    "rate_low": about("95 % interval over pictures", role="low", of="rate"),
    "rate_high": about("95 % interval over pictures", role="high", of="rate"),
    "model_rate": about("share of a model's patches with a word that fits", better="high"),
    "model_rate_low": about("95 % interval over pictures", role="low", of="model_rate"),
    "model_rate_high": about("95 % interval over pictures", role="high", of="model_rate"),
    "captions_rate": about("share of patches with a word in the picture's caption", better="high"),
    "captions_rate_null": about("the same with captions of other pictures", role="null", of="captions_rate"),
    "captions_rate_null_low": about("what 2.5 % of shuffles stay under", role="low", of="captions_rate_null"),
    "captions_rate_null_high": about("what 97.5 % of shuffles stay under", role="high", of="captions_rate_null"),
    "captions_rate_p": about("share of shuffles that reach the rate", better="low", role="p", of="captions_rate"),
}  # fmt: skip
del VARIABLES["among"]


def replay(folder: str | os.PathLike[str], *, draws: int = 1000, seed: int = 0) -> Reading:
    """Kappa and accuracy of judge, people and captions, from the published verdicts on 360 patches of 60 pictures.

    People: the majority of the annotators of a patch, who call it interpretable where they chose any word; a tie counts
    as yes.  Judge: any word in its three lists.  Captions: a word with the stem of a candidate is in the picture's
    caption (:class:`Captions`).

    Parameters
    ----------
    folder
        With data.json, humans.json and judge.json.
    draws, seed
        Of the shuffles.

    Returns
    -------
    Reading
        kappa, accuracy [pair] with intervals over pictures and chance levels: of judge and people, captions and people,
        captions and judge, and of every two annotators that share enough patches
        rate [scorer], model_rate [scorer, model]: shares of patches with a word that fits, intervals over pictures
        captions_rate, captions_rate_null with the range of its shuffles, captions_rate_p [shuffled]: the scorer by
        captions and its null.  Captions are shuffled among patches, as is usual, and among whole pictures, which is
        right: patches of a picture share its caption, and shares vary more than of as many independent ones

    Raises
    ------
    ReadingError
        Where a file is missing or not what it should be.
    """
    data, humans, judged = (_read(Path(folder) / name) for name in FILES)
    try:
        rows = _rows(data, humans, judged)
    except (KeyError, TypeError, AttributeError) as error:
        raise ReadingError(f"{folder} does not hold the published verdicts: {error!r} is missing.") from error
    if not rows["id"]:
        raise ReadingError(f"{folder}: no patch was judged by model and people.")
    picture = np.unique(rows["picture"], return_inverse=True)[1]
    votes: dict[str, np.ndarray] = rows["votes"]
    people = np.array([np.nanmean(own) >= MAJORITY for own in np.stack(list(votes.values()), 1)])
    words, captions = rows["words"], rows["captions"]
    scored = {
        "judge": rows["judge"], "people": people,
        "captions": np.array([bool(own & text) for own, text in zip(words, captions, strict=True)]),
    }  # fmt: skip
    found = {name: own.astype(float) for name, own in scored.items()}
    pairs = {
        f"{one} and {other}": agreements.agreed(found[one], found[other], picture)
        for one, other in (("judge", "people"), ("captions", "people"), ("captions", "judge"))
    }
    names = sorted(votes)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if (np.isfinite(votes[one]) & np.isfinite(votes[other])).sum() >= FEWEST:
                pairs[f"{one} and {other}"] = agreements.agreed(votes[one], votes[other], picture)
    table = agreements.table(pairs, "pair").assign(_rates(found, rows["model"], picture))
    table = table.assign(_null(words, captions, picture, float(found["captions"].mean()), draws, seed))
    table = table.assign_coords(scorer=np.array(SCORERS, object))
    table.attrs = {"reader": "judge.replay", "patches": len(picture), "pictures": int(picture.max()) + 1}
    step = {"step": "judge.replay", "settings": {"draws": draws, "seed": seed}, "source": "arXiv 2602.00462"}
    return Reading(described(table, VARIABLES), step)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ReadingError(f"{path} cannot be read: {error}. The folder holds {', '.join(FILES)}.") from error


def _rows(data: Any, humans: Any, judged: Any) -> dict[str, Any]:
    """What is known of each patch that model and people judged, in the order of the data."""
    said = {row["instance_id"]: row for row in judged["results"]}
    chosen: dict[str, dict[str, bool]] = {}
    for row in humans:
        chosen.setdefault(row["instance"], {})[row["annotator"]] = bool(row["words"])
    known = [row for row in data if row["id"] in said and row["id"] in chosen]
    annotators = sorted({name for own in chosen.values() for name in own})
    return {
        "id": [row["id"] for row in known],
        "picture": [row["index"] for row in known],
        "model": np.array([row["model"] for row in known]),
        "words": [frozenset().union(*map(stems, row["candidates"])) for row in known],
        "captions": [stems(row["caption"]) for row in known],
        "judge": np.array([any(said[row["id"]]["gpt_response"][name] for name in LISTS) for row in known]),
        "votes": {
            name: np.array([float(chosen[row["id"]].get(name, np.nan)) for row in known]) for name in annotators
        },
    }


def _rates(found: dict[str, np.ndarray], model: np.ndarray, picture: np.ndarray) -> dict[str, Any]:
    names, code = np.unique(model, return_inverse=True)
    values = np.stack([found[name] for name in SCORERS], 1)
    design = Design(clusters=picture)
    whole, parts = design.bootstrap(values, bounds=(0, 1)), design.bootstrap(values, by=code, bounds=(0, 1))
    made: dict[str, Any] = {"rate": ("scorer", whole.value), "model_rate": (("scorer", "model"), parts.value.T)}
    for end in ("low", "high"):
        made[f"rate_{end}"] = "scorer", getattr(whole, end), {"interval": whole.said("pictures")}
        said = {"interval": parts.said("pictures")}
        made[f"model_rate_{end}"] = ("scorer", "model"), getattr(parts, end).T, said
    made["model"] = "model", names.astype(object)
    return made


def _null(
    words: list[frozenset[str]], captions: list[frozenset[str]], picture: np.ndarray, rate: float, draws: int, seed: int
) -> dict[str, Any]:
    """The scorer by captions where each patch has the caption of another picture."""
    first = np.unique(picture, return_index=True)[1]
    # [patch, picture]
    fits = np.array([[bool(own & captions[i]) for i in first] for own in words])
    rng, patch = np.random.default_rng(seed), np.arange(len(picture))
    shares: dict[str, list[float]] = {"patches": [], "pictures": []}
    for _ in range(draws):
        given = picture[rng.permutation(len(picture))]
        other = given != picture
        shares["patches"].append(fits[patch, given][other].mean())
        order = rng.permutation(len(first))
        # Each picture's caption goes to the next in a circle: to another one, always.
        given = np.empty(len(first), int)
        given[order] = np.roll(order, 1)
        shares["pictures"].append(fits[patch, given[picture]].mean())
    drawn = np.array(list(shares.values())).T
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return {
        "captions_rate": ("shuffled", np.full(2, rate)),
        "captions_rate_null": ("shuffled", drawn.mean(0)),
        "captions_rate_null_low": ("shuffled", low, {"interval": f"of {draws} shuffles"}),
        "captions_rate_null_high": ("shuffled", high, {"interval": f"of {draws} shuffles"}),
        "captions_rate_p": ("shuffled", p_value(np.full(2, rate), drawn)),
        "shuffled": ("shuffled", np.array(list(shares), object)),
    }


def told(found: Reading) -> str:
    """The tables as text."""
    data, lines = found.data, []

    def interval(name: str, **at: Any) -> str:
        value, low, high = (float(data[f"{name}{end}"].sel(at)) for end in ("", "_low", "_high"))
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    for pair in data["pair"].values:
        n = int(data["questions"].sel(pair=pair))
        kappa, accuracy = interval("kappa", pair=pair), interval("accuracy", pair=pair)
        lines.append(f"{pair:<28} kappa {kappa}  accuracy {accuracy}  n {n}")
    for scorer in data["scorer"].values:
        lines.append(f"{scorer:<28} rate {interval('rate', scorer=scorer)}")
    for shuffled in data["shuffled"].values:
        p = float(data["captions_rate_p"].sel(shuffled=shuffled))
        null = interval("captions_rate_null", shuffled=shuffled)
        lines.append(f"captions of other pictures, shuffled among {shuffled:<9} rate {null}  p {p:.3g}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lenses.judge.published", description=__doc__)
    parser.add_argument("folder", help="with data.json, humans.json and judge.json")
    print(told(replay(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
