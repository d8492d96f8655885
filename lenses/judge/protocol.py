"""The protocol: the same patches for every lens and layer, shuffled words, nulls that the judge cannot tell."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from lenses.judge import kappa as agreements
from lenses.judge.cache import Kept
from lenses.judge.places import boxes, picture_keys, same_places, sample, tokens_of
from lenses.judge.questions import RELATIONS, Judge, Question, Verdict, digest
from lenses.judge.render import Seen, marked
from lenses.judge.words import Words, candidates, depth_of, random_words
from workbench.errors import InputError, warn
from workbench.images.pictures import Picture
from workbench.reading import Reading, derived
from workbench.stats import Design, fdr, over
from workbench.variables import about, described

OWN, OTHER, RANDOM = "own", "other picture", "random words"
ARMS = (OWN, OTHER, RANDOM)
UNREAD = 0.02
"""A larger share of answers that cannot be read is warned of."""
VARIABLES = {
    "interpretable": about("whether any word fits (1) or none does (0)", better="high", short_name="interpretable"),
    "word": about("word that was judged", role="label", of="interpretable"),
    "relation": about("how the word fits; empty: not at all", role="label", of="word"),
    "question": about("question that was asked", role="label", of="interpretable"),
    "failed": about("why there is no verdict", role="label", of="interpretable"),
    "rate": about("share of patches with a word that fits", better="high", short_name="interpretable"),
    "rate_low": about("95 % interval over pictures", role="low", of="rate"),
    "rate_high": about("95 % interval over pictures", role="high", of="rate"),
    "rate_null": about(
        "share of patches with a word that fits, of words of other pictures or at random", role="null", of="rate"
    ),
    "rate_null_low": about("95 % interval over pictures", role="low", of="rate_null"),
    "rate_null_high": about("95 % interval over pictures", role="high", of="rate_null"),
    "excess": about("share of patches with a word that fits, less the null's", better="high", short_name="above null"),
    "excess_low": about("95 % interval over pictures", role="low", of="excess"),
    "excess_high": about("95 % interval over pictures", role="high", of="excess"),
    "excess_p": about("p that a lens is no better than the null", better="low", role="p", of="excess"),
    "excess_q": about("p, adjusted for the number of lenses and layers", better="low", role="q", of="excess"),
    "relation_rate": about("share of patches with a word of the relation"),
    "unparsed": about("answers that could not be read", "questions", role="count", of="interpretable"),
    "unanswered": about("questions without an answer", "questions", role="count", of="interpretable"),
    "words": about("different words of a patch, mean", "words", role="count", of="interpretable"),
    "lens": about("lens", role="label"),
    "arm": about("whose words: the patch's own, or a null's", role="label"),
    "null": about("whose words the null is of", role="label"),
    "how": about("relation of words to the picture", role="label"),
}  # fmt: skip


def judge(
    readings: Reading | Sequence[Reading] | Mapping[str, Reading],
    judge: Judge,
    *,
    patches: Reading | None = None,
    n: int = 100,
    seed: int = 0,
    block: int = 3,
    tile: int | None = 0,
    top: int = 5,
    layers: Sequence[int] | None = None,
    pictures: Sequence[Any] | None = None,
    captions: Sequence[str] | None = None,
    random: Any = None,
    people: Reading | None = None,
    cache: Any = None,
    workers: int = 1,
    draws: int = 2000,
    progress: bool = True,
) -> Reading:
    """Ask a judge whether the words of lenses fit their patches, and whether words fit that cannot.

    Parameters
    ----------
    readings
        One reading with words by layer and rank, or those of several lenses from one pass; by name, where two are of
        the same lens.
    judge
        :class:`Endpoint`, :class:`LocalModel`, :class:`Person`, :class:`Captions`, or any function of a
        :class:`Question` with a ``name``.
    patches
        Of :func:`sample`; None: sampled here with ``n``, ``seed``, ``block``, ``tile``.
    top
        How many different words of each place are shown.  Read lenses with a larger ``top_k`` for as many where
        neighbours repeat.
    layers
        Which layers (or blocks); None: all.
    pictures
        The original pictures, one for each of the reading's dimension ``picture``, in its order (that of the prompts).
        Without them judges see the thumbnails in the reading, of at most 336 pixels.
    captions
        In the same order; :class:`Captions` needs them.
    random
        Where words at random come from: the :class:`~lenses.ContextIndex` (or its folder) for LatentLens, the
        :class:`workbench.Model` for lenses of tokens, a list of words, or several of these in a list.  Without it the
        null of random words is missing.
    people
        What people said of the same patches, a result of this function with :class:`Person`: agreement with them is
        then in the result (:func:`agreement`).
    cache
        A folder.  Each verdict is kept when it is given: a run that was cut short goes on there, and no question is
        asked twice.
    workers
        Questions that are asked at a time (of an :class:`Endpoint`).
    draws
        Of the tests.

    Returns
    -------
    Reading
        interpretable, word, relation, question, failed [lens, arm, layer, patch (, candidate)]: verdicts; arm "own" is
        the patch's own words, the others are nulls
        rate, rate_low, rate_high [lens, layer]: share of patches with a word that fits, interval over pictures
        rate_null, rate_null_low, rate_null_high [null, lens, layer]: the same of words of another picture's patch at
        the same layer, and of words at random: what this judge calls fitting anyway
        excess, excess_low, excess_high, excess_p, excess_q [null, lens, layer]: the difference, patch by patch
        relation_rate [how, lens, arm, layer]; unparsed, unanswered, words [lens, arm, layer]
        with ``people``: kappa and accuracy [among], as :func:`agreement` gives them

        An answer that cannot be read is no verdict and counts in no share; ``unparsed`` counts them.  The attribute
        ``shown`` says from what the pictures were drawn and whether their proportions were kept.

    Raises
    ------
    InputError
        For readings of different places or layers, and what else does not fit.
    JudgeError
        Where a judge cannot be asked.  What it has said is in the cache.

    Notes
    -----
    The judge sees neither lens nor layer nor arm: words are in an order that the seed and they themselves give,
    questions come in random order, and the same words for the same place are one question.  Another picture's words are
    dealt out once for all lenses and layers, every patch's to one other, which makes tests and intervals of the
    difference a little wider than they need be; words at random are as many as the patch's own.  p is one-sided,
    by flipping signs of pictures (:meth:`workbench.stats.Design.flip`); equal pictures are one.
    """
    named = _named(readings)
    data, depth, places = _checked(named, layers)
    patches = sample(list(named.values()), n, seed, block, tile=tile) if patches is None else patches
    at = _places(patches.data, data)
    own = {}
    for name, reading in named.items():
        found = candidates(reading, at["prompt"], at["position"], top)
        own[name] = [found[i] for i in places]
    arms, words = _arms(own, named, patches.data, seed, random, top)
    asking = _Asking(data, patches.data, seed, pictures, captions)
    question = np.full(words.shape, "", object)
    for where in np.ndindex(*words.shape):
        if words[where]:
            question[where] = asking.ask(where[-1], words[where])
    verdicts = _asked(judge, list(asking.questions.values()), cache, workers, seed, progress)
    dims = ("lens", "arm", depth, "patch")
    found = _verdicts(words, question, verdicts, top)
    result = xr.Dataset(
        {name: ((*dims, "candidate")[: values.ndim], values) for name, values in found.items()},
        {"lens": np.array(list(named), object), "arm": arms, depth: _depths(next(iter(named.values())), depth)[places],
         "null": arms[1:], "how": np.array(list(RELATIONS), object)},
        {"reader": f"judge.judge ({judge.name})", "judge": judge.name, "chart": "judged", "shown": asking.shown,
         "questions": len(asking.questions)},
    )  # fmt: skip
    result = result.merge(patches.data, combine_attrs="override")
    result = result.assign(_rates(result, depth, Design(clusters=at["picture_key"].astype(str)), draws, seed))
    _warned(result, asking)
    asked = {
        "judge": judge.name, "seed": seed, "top": top, "draws": draws, "random": random is not None,
        "sampled": next((own["settings"] for own in patches.provenance if own["step"] == "judge.sample"), {}),
    }  # fmt: skip
    sources = [Reading(xr.Dataset(attrs=own.data.attrs), own.provenance) for own in named.values()]
    done = derived("judge.judge", described(result, VARIABLES), *sources, **asked)
    if people is not None:
        agreed = agreements.agreement(done, people)
        done = Reading(done.data.merge(agreed.data, combine_attrs="override"), done.provenance)
    return done


# ---------------------------------------------------------------- what is judged


def _named(readings: Reading | Sequence[Reading] | Mapping[str, Reading]) -> dict[str, Reading]:
    if isinstance(readings, Mapping):
        named = {str(name): own for name, own in readings.items()}
    else:
        every = [readings] if isinstance(readings, Reading) else list(readings)
        named = {str(own.data.attrs.get("reader", "?")): own for own in every}
        if len(named) < len(every):
            raise InputError(
                f"Two of the readings are of the same lens ({', '.join(named)}). Give them names: "
                '{"centred": reading, "raw": other}.'
            )
    if not named:
        raise InputError("There is no reading to judge. Give one or more.")
    return named


def _checked(named: dict[str, Reading], layers: Sequence[int] | None) -> tuple[xr.Dataset, str, list[int]]:
    """The first dataset, the dimension of depth, and which of its places are judged."""
    every = list(named.values())
    data = same_places(every)
    known = {name: (depth_of(own), _depths(own, depth_of(own)).tolist()) for name, own in named.items()}
    if len({str(one) for one in known.values()}) > 1:
        told = "; ".join(f"{name}: {depth} {held}" for name, (depth, held) in known.items())
        raise InputError(f"The lenses were read at other depths: {told}. Read them at the same layers, in one pass.")
    depth, held = next(iter(known.values()))
    # Negative ones count from the model's end, as where layers are read.
    last = data.attrs.get("n_layers", max(held) + (depth == "block")) + (depth == "layer")
    wanted = held if layers is None else [int(i) + last * (i < 0) for i in np.atleast_1d(layers)]
    if missing := [i for i in wanted if i not in held]:
        asked = np.ravel(layers).tolist()  # type: ignore[arg-type]
        raise InputError(f"layers={asked}: the readings have no {depth} {missing[0]}. They have {held}.")
    if not wanted:
        raise InputError("layers=[] leaves nothing to judge.")
    return data, depth, [held.index(i) for i in wanted]


def _places(patches: xr.Dataset, data: xr.Dataset) -> dict[str, np.ndarray]:
    """Where patches are; InputError where they are not of these readings."""
    at = {name: patches[name].values for name in ("prompt", "position", "picture", "picture_key")}
    keys, here = picture_keys(data), (at["prompt"], at["position"])
    inside = max(at["picture"]) < len(keys) and max(at["position"]) < data.sizes["position"]
    if not inside or [keys[p] for p in at["picture"]] != at["picture_key"].tolist():
        raise InputError("These patches were sampled from readings of other pictures. Sample those that are judged.")
    if any((data[name].values[here] != patches[name].values).any() for name in ("tile", "row", "column")):
        raise InputError(
            "These patches were sampled from a reading of other positions of the same pictures. Sample those that are "
            "judged: the same pictures and seed give the same patches."
        )
    return at


def _depths(reading: Reading, depth: str) -> np.ndarray:
    return reading.data[depth].values.astype(int)


def _arms(
    own: dict[str, list[list[Words]]], named: dict[str, Reading], patches: xr.Dataset, seed: int, random: Any, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Names of the arms, and the words [lens, arm, depth, patch] of each; None where there is no such null."""
    donors = _donors(patches["picture_key"].values.tolist())
    drawers = {name: None if random is None else random_words(random, reading) for name, reading in named.items()}
    arms = np.array(ARMS if any(drawers.values()) else ARMS[:2], object)
    depths, n = len(next(iter(own.values()))), patches.sizes["patch"]
    words = np.full((len(own), len(arms), depths, n), None, object)
    places = [patches[name].values for name in ("picture_key", "tile", "row", "column", "position")]
    for i, (name, rows) in enumerate(own.items()):
        for patch in range(n):
            draw, drawn = drawers[name], ()
            if draw is not None:
                drawn = draw(_generator(seed, name, *(str(column[patch]) for column in places)), top)
            for d, row in enumerate(rows):
                words[i, 0, d, patch] = row[patch]
                if donors is not None:
                    words[i, 1, d, patch] = row[donors[patch]]
                if draw is not None:
                    # As many as the lens has, so that chance has as many looks.
                    words[i, 2, d, patch] = drawn[: len(row[patch])]
    return arms, words


def _donors(pictures: list[str]) -> list[int] | None:
    """For each patch another one, of another picture; each is taken once.  None where more than half are of one.

    Patches stand in random order (:func:`~lenses.judge.places.sample`); those of a picture are put side by side and all
    move on by as many places as the largest picture has.
    """
    first = {key: pictures.index(key) for key in dict.fromkeys(pictures)}
    order = sorted(range(len(pictures)), key=lambda i: (first[pictures[i]], i))
    most = max(pictures.count(key) for key in first)
    if 2 * most > len(pictures):
        return None
    donors = [0] * len(pictures)
    for place, patch in enumerate(order):
        donors[patch] = order[(place + most) % len(order)]
    return donors


def _generator(seed: int, *said: str) -> np.random.Generator:
    drawn = hashlib.blake2b("\0".join([str(seed), *said]).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(drawn, "little"))


# ---------------------------------------------------------------- what is asked


class _Asking:
    """Questions about patches, each of them once."""

    def __init__(self, data: xr.Dataset, patches: xr.Dataset, seed: int, pictures: Any, captions: Any) -> None:
        self.data, self.patches, self.seed = data, patches, seed
        count = data.sizes["picture"]
        for name, given in (("pictures", pictures), ("captions", captions)):
            if given is not None and len(given) != count:
                raise InputError(
                    f"{len(given)} {name} were given, and the readings have {count} pictures. Give one for each, in "
                    "the order of prompts and of the pictures in them."
                )
        self.pictures, self.captions = pictures, captions
        self.questions: dict[str, Question] = {}
        used = np.unique(patches["picture"].values).tolist()
        self.sizes = {p: tuple(float(data[f"picture_{end}"].values[p]) for end in ("width", "height")) for p in used}
        self.seen = {p: self._seen(p) for p in used}
        # Questions come in random order; what is drawn is small, and what it is drawn from may not be.
        self.opened = lru_cache(2)(lambda p: self._given(p).rgb)
        self.square = lru_cache(128)(lambda p: self.seen[p].drawn(self.opened(p), self.sizes[p]))
        self.close = lru_cache(256)(lambda p, box: self.seen[p].close(self.opened(p), self.sizes[p], box))
        self.source = {p: "thumbnail" if pictures is None else self._given(p).digest for p in used}

    @property
    def shown(self) -> str:
        """From what the pictures are drawn, and how."""
        what = "thumbnails in the reading" if self.pictures is None else "the original pictures"
        proportions = {own.proportions for own in self.seen.values()}
        return f"{what}; proportions, as the model saw them: {', '.join(sorted(proportions))}"

    def ask(self, patch: int, words: Words) -> str:
        """The id of the question about these words at a patch."""
        picture = int(self.patches["picture"].values[patch])
        box = self.patches["block_box"].values[patch].astype(float)
        known = sorted(words)
        asked = digest(str(self.patches["picture_key"].values[patch]), [round(float(x), 3) for x in box], known)
        if asked not in self.questions:
            # What they are in order of must not tell where they are from: the lens's own first word is its best.
            order = _generator(self.seed, asked).permutation(len(known))
            seen = self.seen[picture]
            self.questions[asked] = Question(
                asked, tuple(known[i] for i in order),
                None if self.captions is None else str(self.captions[picture]),
                seen.place(box), f"{self.source[picture]} {seen}", self._drawing(picture, tuple(box.tolist())),
            )  # fmt: skip
        return asked

    def _drawing(self, picture: int, box: tuple[float, ...]) -> Callable[[str], Any]:
        def draw(what: str) -> Any:
            if what == "crop":
                return self.close(picture, box).copy()
            square = self.square(picture)
            return marked(square, self.seen[picture].place(box)) if what == "image" else square.copy()

        return draw

    def _seen(self, picture: int) -> Seen:
        prompt, slots = int(self.data["picture_prompt"].values[picture]), tokens_of(self.data, picture)
        every, tiles = boxes(self.data)[prompt][slots], self.data["tile"].values[prompt][slots]
        first = every[tiles == tiles.min()]
        return Seen.of(every, np.median(first[:, 2:] - first[:, :2], axis=0), self.sizes[picture])

    def _given(self, picture: int) -> Picture:
        if self.pictures is None:
            return Picture(str(self.data["picture_data"].values[picture]), f"The thumbnail of picture {picture}")
        found = Picture(self.pictures[picture], f"pictures[{picture}]")
        if (found.width, found.height) != self.sizes[picture]:
            raise InputError(
                f"pictures[{picture}] is {found.width} x {found.height} pixels, and the model read one of "
                f"{self.sizes[picture][0]:.0f} x {self.sizes[picture][1]:.0f}. Give the pictures in the order of the "
                "prompts."
            )
        return found


def _asked(
    judge: Judge, questions: list[Question], cache: Any, workers: int, seed: int, progress: bool
) -> dict[str, tuple[Question, Verdict]]:
    """Each question with its verdict; those that are kept are not asked again."""
    if workers < 1:
        raise InputError(f"workers={workers}: one question or more is asked at a time.")
    kept = Kept(cache if getattr(judge, "kept", True) else None, judge.name)
    if check := getattr(judge, "check", None):
        check(questions)
    found = {own.id: (own, known) for own in questions if (known := kept.get(own)) is not None}
    # In an order that has nothing to do with lens, layer or arm: judges get tired.
    waiting = sorted((own for own in questions if own.id not in found), key=lambda own: digest(seed, own.id))

    def one(question: Question) -> tuple[Question, Verdict]:
        verdict = judge(question)
        if not isinstance(verdict, Verdict):
            raise InputError(f"The judge {judge.name} gave {type(verdict).__name__}. A judge gives a Verdict.")
        if verdict.failed != "unanswered":
            kept.put(question, verdict)
        return question, verdict

    from tqdm.auto import tqdm

    with tqdm(total=len(waiting), desc=f"asking {judge.name}"[:40], disable=not progress or not waiting) as bar:
        for question, verdict in _through(one, waiting, workers):
            found[question.id] = question, verdict
            bar.update()
    return found


def _through(one: Callable[[Question], Any], waiting: list[Question], workers: int) -> Any:
    if workers == 1:
        yield from map(one, waiting)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(one, waiting)
    finally:
        # After an error or an interrupt nothing more is asked; what is on its way is kept.
        pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------- what comes out


def _verdicts(
    words: np.ndarray, question: np.ndarray, verdicts: dict[str, tuple[Question, Verdict]], top: int
) -> dict[str, np.ndarray]:
    shape = words.shape
    value, failed = np.full(shape, np.nan), np.full(shape, "", object)
    word, relation = np.full((*shape, top), "", object), np.full((*shape, top), "", object)
    for where in np.ndindex(*shape):
        own = words[where]
        if own is None:
            failed[where] = "no such null"
        elif not own:
            value[where] = 0.0  # no words, none that fits
        else:
            word[(*where, slice(len(own)))] = own
            verdict = verdicts[question[where]][1]
            failed[where] = verdict.failed
            if not verdict.failed:
                fits = verdict.fits(own)
                relation[(*where, slice(len(own)))] = fits
                value[where] = float(any(fits))
    return {"interpretable": value, "word": word, "relation": relation, "question": question, "failed": failed}


def _rates(data: xr.Dataset, depth: str, design: Design, draws: int, seed: int) -> dict[str, xr.Variable]:
    """Shares, their nulls and the differences, with intervals and tests over pictures."""
    cells, nulls = ("lens", depth), ("null", "lens", depth)
    value = data["interpretable"].transpose("patch", "arm", "lens", depth).values
    own, null = value[:, 0], value[:, 1:]
    found: dict[str, xr.Variable] = {}

    def interval(name: str, dims: tuple[str, ...], values: np.ndarray, bounds: tuple[float, float]) -> None:
        drawn = design.bootstrap(values, bounds=bounds, draws=draws, seed=seed)
        found[name] = xr.Variable(dims, drawn.value)
        for end in ("low", "high"):
            found[f"{name}_{end}"] = xr.Variable(dims, getattr(drawn, end), {"interval": drawn.said("pictures")})

    interval("rate", cells, own, (0, 1))
    interval("rate_null", nulls, null, (0, 1))
    interval("excess", nulls, own[:, None] - null, (-1, 1))
    test = design.flip(own[:, None] - null, alternative="greater", draws=draws, seed=seed)
    found["excess_p"] = xr.Variable(nulls, test.p, {"resolution": test.resolution})
    found["excess_q"] = xr.Variable(nulls, np.stack([fdr(p) for p in test.p]))
    relation, dims = data["relation"].transpose(..., "patch", "candidate"), ("lens", "arm", depth)
    known = np.isfinite(data["interpretable"].transpose(*dims, "patch").values)
    named = np.stack([(relation.values == how).any(-1) & known for how in RELATIONS])
    found["relation_rate"] = xr.Variable(("how", *dims), over(named.sum(-1), known.sum(-1)))
    for name in ("unparsed", "unanswered"):
        found[name] = xr.Variable(dims, (data["failed"].transpose(*dims, "patch").values == name).sum(-1))
    words = (data["word"].transpose(*dims, "patch", "candidate").values != "").sum(-1)
    found["words"] = xr.Variable(dims, words.mean(-1))
    return found


def _warned(data: xr.Dataset, asking: _Asking) -> None:
    cells = data["question"].values != ""
    unread = int(data["unparsed"].sum())
    if unread > UNREAD * cells.sum():
        warn(
            f"{unread} of {cells.sum()} answers could not be read, and count in no share: failed says which. Look at "
            "what the judge says, and ask it for nothing but JSON."
        )
    if np.isnan(data["excess"].sel(null=OTHER)).all() and not data["unanswered"].any():
        warn(
            "There is no null of other pictures: more than half of the patches are of one picture, of "
            f"{len(asking.seen)}. What the judge calls fitting anyway is not known."
        )
