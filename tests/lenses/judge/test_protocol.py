"""The protocol on mosaics, whose every patch is known, with judges that see, guess, say always yes, and fail."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from mosaics import CELL, NAMES, NONSENSE, Says, Sees, mosaic, reading, tables, yes
from PIL import Image

import workbench
from lenses import judge
from lenses.judge.questions import JudgeError
from workbench.errors import InputError, ReadingError
from workbench.stats import Design
from workbench.variables import lacking

QUIET = {"progress": False, "draws": 200}


def around(cells, patches) -> list[set[str]]:
    """The colours in each patch's block, read off the tables."""
    data = patches.data
    places = zip(*(data[name].values for name in ("picture", "row", "column")), strict=True)
    return [{NAMES[i] for i in np.unique(cells[p][r - 1 : r + 2, c - 1 : c + 2])} for p, r, c in places]


@pytest.fixture(scope="module")
def cells():
    return tables(24)


@pytest.fixture(scope="module")
def lenses(cells):
    one = reading(cells, share=(0.0, 0.5, 1.0))
    return [one, reading(cells, share=(0.3, 0.3, 0.0), lens="LogitLens", seed=3)]


# ---------------------------------------------------------------- verdicts


def test_a_judge_that_knows_the_pictures_finds_what_is_there(cells, lenses):
    patches = judge.sample(lenses, n=40)
    data = judge.judge(lenses, Sees(), patches=patches, random=NONSENSE + NAMES, **QUIET).data
    there, seen = around(cells, patches), set()
    for lens, arm, layer, patch in np.ndindex(*data["word"].shape[:4]):
        words = [w for w in data["word"].values[lens, arm, layer, patch] if w]
        fits = [w in there[patch] for w in words]
        assert data["interpretable"].values[lens, arm, layer, patch] == any(fits)
        relations = data["relation"].values[lens, arm, layer, patch][: len(words)]
        assert [r == "concrete" for r in relations] == fits and set(relations) <= {"concrete", ""}
        seen.add((arm, any(fits)))
    assert len(seen) == 6, "in each arm some fit and some do not"
    # The lens's own words, straight from the reading: LatentLens's word, LogitLens's token.
    prompt, position = (patches[name].values for name in ("prompt", "position"))
    assert (data["word"].values[0, 0] == lenses[0]["word"].values[prompt, :, position].swapaxes(0, 1)).all()
    value = data["interpretable"].values
    np.testing.assert_allclose(data["rate"], value[:, 0].mean(-1))
    np.testing.assert_allclose(data["rate_null"], value[:, 1:].mean(-1).swapaxes(0, 1))
    np.testing.assert_allclose(data["excess"], data["rate"].values - data["rate_null"].values)
    assert data["rate"].values[0, 2] == 1 and data["excess_p"].sel(lens="LatentLens", layer=2).values.max() < 0.02
    assert data["rate"].values[0, 0] == 0 and data["excess_p"].sel(lens="LatentLens", layer=0).values.min() > 0.2
    concrete = data["relation_rate"].sel(how="concrete")
    np.testing.assert_allclose(concrete, value.mean(-1))
    assert not data["relation_rate"].sel(how=["abstract", "global"]).any()


def test_a_judge_that_says_always_yes_finds_nothing(lenses):
    """Its rate is 1 for every lens, and for words that have nothing to do with the picture."""
    data = judge.judge(lenses, Says(yes), random=NONSENSE, n=30, **QUIET).data
    assert (data["rate"] == 1).all() and (data["rate_null"] == 1).all()
    assert (data["excess"] == 0).all() and (data["excess_p"] == 1).all() and (data["excess_q"] == 1).all()


def test_words_that_were_no_candidates_do_not_count(lenses):
    made_up = Says(lambda q: judge.Verdict(concrete=("a cathedral",), abstract=(q.words[0] + "!",)))
    data = judge.judge(lenses[0], made_up, n=10, **QUIET).data
    assert (data["rate"] == 0).all() and not data["unparsed"].any()
    loud = Says(lambda q: judge.Verdict(elsewhere=(f"  {q.words[1].upper()} ",)))
    data = judge.judge(lenses[0], loud, n=10, **QUIET).data
    assert (data["rate"] == 1).all(), "case and spaces do not make another word"
    assert ((data["relation"] == "global").sum("candidate") == 1).all()


def test_the_null_is_of_other_pictures_and_uses_every_patch_once(lenses, cells):
    patches = judge.sample(lenses, n=60)
    data = judge.judge(lenses[0], Says(yes), patches=patches, layers=[2], **QUIET).data
    own, other = data["word"].values[0, :, 0].astype(str)
    rows = {tuple(row): i for i, row in enumerate(own.tolist())}
    donors = [rows[tuple(row)] for row in other.tolist()]
    assert sorted(donors) == list(range(60)), "each patch's words stand in for one other's"
    picture = patches["picture"].values
    assert (picture[donors] != picture).all()


def test_words_at_random_are_as_many_as_the_lens_has(cells):
    texts = ["red", " Red ", "RED", "blue", "red"]
    own = reading(cells, words=lambda p, layer, r, c: texts[: 2 + 3 * layer], share=(1, 1))
    data = judge.judge(own, Says(yes), n=20, random=NONSENSE, **QUIET).data
    count = (data["word"] != "").sum("candidate")
    assert (count.sel(layer=0) == 1).all() and (count.sel(layer=1) == 2).all()
    assert (data["words"].sel(layer=1) == 2).all()
    random = data["word"].sel(arm="random words", layer=1).values[..., :2].ravel().tolist()
    assert set(random) <= set(NONSENSE) and len(set(random)) > 20


def test_one_picture_alone_has_no_null():
    with pytest.warns(UserWarning, match="no null of other pictures"):
        data = judge.judge(reading(tables(1)), Says(yes), n=5, **QUIET).data
    assert np.isnan(data["excess"]).all() and np.isnan(data["rate_null"]).all() and (data["rate"] == 1).all()
    assert set(data["failed"].sel(arm="other picture").values.ravel()) == {"no such null"}


def test_layers_are_chosen_and_may_be_blocks(lenses):
    whole = judge.judge(lenses[0], Sees(), n=10, **QUIET).data
    last = judge.judge(lenses[0], Sees(), n=10, layers=[-1, 0], **QUIET).data
    assert last["layer"].values.tolist() == [2, 0]
    assert last["rate"].values.tolist() == whole["rate"].sel(layer=[2, 0]).values.tolist()
    deep = workbench.reading.Reading(lenses[0].data.assign_attrs(n_layers=6))
    with pytest.raises(InputError, match="layers=\\[-1\\]: the readings have no layer 6"):
        judge.judge(deep, Sees(), n=10, layers=[-1], **QUIET)
    blocks = workbench.reading.Reading(lenses[0].data.rename(layer="block").assign_attrs(n_layers=3))
    found = judge.judge(blocks, Sees(), n=10, layers=[-1], **QUIET)
    assert found["block"].values.tolist() == [2]
    assert found["rate"].values.ravel().tolist() == whole["rate"].sel(layer=[2]).values.ravel().tolist()


# ---------------------------------------------------------------- words


def test_words_come_from_the_lens_and_not_from_a_search_in_its_sentence(cells):
    """The published evaluator takes the first place where the token's letters stand: "the" in "Another"."""
    own = reading(cells, words=lambda *_: ["the"])
    own.data["sentence"] = own.data["word"].copy(data=np.full(own.data["word"].shape, "Another day in the sun", object))
    data = judge.judge(own, Says(yes), n=5, **QUIET).data
    assert set(data["word"].values.ravel()) == {"the", ""}


def test_the_five_best_without_duplicates_and_pieces_of_words_as_they_are(cells):
    texts = [" White", "white", "WHITE ", "izzato", "##ing", "\n", "", "🙂", "later"]
    for lens in ("LatentLens", "LogitLens"):
        own = reading(cells, words=lambda *_: texts, top_k=9, lens=lens)
        data = judge.judge(own, Says(yes), n=3, **QUIET).data
        assert set(map(tuple, data["word"].values.reshape(-1, 5).tolist())) == {("White", "izzato", "##ing", "↵", "🙂")}


def test_a_place_without_words_fits_nothing_and_is_not_asked(cells):
    """States of zeros have no neighbours: their words are nobody's, and no arbitrary ones."""
    judged = Says(yes)
    own = reading(cells, words=lambda p, layer, r, c: ["red"] if layer else [], share=(1, 1))
    data = judge.judge(own, judged, n=10, **QUIET).data
    assert data["rate"].values.tolist() == [[0, 1]] and data["words"].sel(arm="own").values.tolist() == [[0, 1]]
    assert all(question.words for question in judged.asked)


def test_random_words_of_an_index_and_of_a_model(cells, tmp_path):
    from lenses import ContextIndex
    from workbench.organisms.story.grammar import stories
    from workbench.tokens import token_texts, visible

    model = workbench.load("organism:story")
    index = ContextIndex.build(model, [s.text for s in stories(30, 5)], tmp_path / "index", progress=False)
    both = [reading(cells), reading(cells, lens="LogitLens", seed=1)]
    for source in ([index, model], [model, str(tmp_path / "index")]):
        data = judge.judge(both, Says(yes), n=20, random=source, **QUIET).data
        found = data["word"].sel(arm="random words", layer=0)
        text = " ".join(s.text for s in stories(30, 5))
        words = [w for w in found.sel(lens="LatentLens").values.ravel() if w]
        assert len(set(words)) > 30 and all(w in text for w in words)
        every = {t.strip() or visible(t) for t in token_texts(model.tokenizer, range(model.vocab_size))}
        tokens = [w for w in found.sel(lens="LogitLens").values.ravel() if w]
        assert len(set(tokens)) > 30 and set(tokens) <= every
    # A model alone has no contexts to draw from.
    data = judge.judge(both, Says(yes), n=20, random=model, **QUIET).data
    assert np.isnan(data["rate_null"].sel(null="random words", lens="LatentLens")).all()
    assert (data["rate_null"].sel(null="random words", lens="LogitLens") == 1).all()
    with pytest.raises(InputError, match="gives no words"):
        judge.judge(both, Says(yes), n=5, random=3.5, **QUIET)


# ---------------------------------------------------------------- blindness


def test_nothing_tells_lens_layer_arm_or_rank(cells):
    """The judge gets the same questions, word for word, whatever the lens is called and whatever its words' order."""
    rng = np.random.default_rng(0)
    texts = {}

    def words(p, layer, r, c):
        return texts.setdefault((p, layer, r, c), rng.choice(NAMES + NONSENSE, 5, replace=False).tolist())

    asked = []
    for order, name, lens in ((1, "one", "LatentLens"), (-1, "another", "LogitLens")):
        own = reading(cells, words=lambda *at, order=order: words(*at)[::order], share=(1, 1), lens=lens)
        judged = Says(yes)
        judge.judge({name: own}, judged, n=15, **QUIET)
        asked.append([(q.id, q.words, q.key, q.box) for q in judged.asked])
        for question in judged.asked:
            assert not {name, lens, "own", "other picture"} & set(repr(question).split())
    assert asked[0] == asked[1]
    first = [question[1][0] for question in asked[0]]
    lists = [next(own for own in texts.values() if set(own) == set(question[1])) for question in asked[0]]
    ranks = [own.index(word) for own, word in zip(lists, first, strict=True)]
    assert np.bincount(ranks, minlength=5).min() > 0, "the lens's first word stands anywhere"


def test_nulls_and_lenses_are_asked_in_one_mixed_order(lenses):
    judged = Says(yes)
    data = judge.judge(lenses[0], judged, n=30, layers=[1], random=NONSENSE, **QUIET).data
    arm = {key: a for a in range(3) for key in data["question"].values[0, a, 0]}
    order = np.array([arm[q.id] for q in judged.asked])
    place = [np.flatnonzero(order == a).mean() / len(order) for a in range(3)]
    assert max(place) - min(place) < 0.25


def test_the_same_words_for_the_same_place_are_one_question(cells):
    own = reading(cells, words=lambda p, layer, r, c: ["red", "blue", f"w{p}"], share=(1, 1, 1))
    judged = Says(yes)
    judge.judge({"a": own, "b": own}, judged, n=10, **QUIET)
    assert len(judged.asked) == 20, "ten patches, with their own and another's words, for two lenses and three layers"


# ---------------------------------------------------------------- pictures


def test_the_judge_sees_the_block_the_box_and_the_crop(cells, lenses):
    judged = Sees()
    judge.judge(lenses[0], judged, n=5, layers=[0], **QUIET)
    for question in judged.asked:
        image, bare, crop = (np.asarray(p).astype(int) for p in (question.image, question.bare, question.crop))
        left, top, right, bottom = (round(v) for v in question.box)
        assert image.shape == (512, 512, 3) and crop.shape == (256, 256, 3)
        for k in range(3):  # a line of three pixels
            assert (image[top + k, left + 4 : right - 4] == (255, 0, 0)).all()
            assert (image[top + 4 : bottom - 4, left + k] == (255, 0, 0)).all()
        inner = (slice(top + 3, bottom - 3), slice(left + 3, right - 3))
        tinted = bare[inner] * (1 - 30 / 255) + np.array([255, 0, 0]) * 30 / 255
        assert np.abs(image[inner] - tinted).max() <= 1
        outside = np.ones((512, 512), bool)
        outside[top : bottom + 1, left : right + 1] = False
        assert (image[outside] == bare[outside]).all()
        small = np.asarray(question.bare.crop((left, top, right, bottom)).resize((256, 256))).astype(int)
        assert np.abs(small - crop).mean() < 12


def squashed(p, t, r, c):
    return c * 20, r * 10, (c + 1) * 20, (r + 1) * 10


def padded(p, t, r, c):
    return c * 20, (r - 1) * 20, (c + 1) * 20, r * 20


@pytest.mark.parametrize("name", ["siglip", "dinov2", "clip", "olmo-dino", "qwen2-vl"])
def test_squashed_or_padded_is_what_the_model_saw_and_no_models_name(name):
    """The published evaluator goes by the model's name, and pads where it does not know it: "olmo-dino" of its own
    README, and no name at all, were judged on another picture than the model's."""
    table = tables(1, (3, 6), seed=4)[0]
    picture = mosaic(table, (20, 20))
    views = {}
    for how, boxes in (("squash", squashed), ("pad", padded)):
        grid = tables(2, (6, 6), seed=5)
        rows = () if how == "squash" else (0, 4, 5)
        own = reading(grid, padded=rows, boxes=boxes, sizes=[(120, 60)] * 2)
        own.data["picture_data"] = "picture", np.array([_uri(picture)] * 2, object)
        own.data.attrs["model"] = name
        judged = Sees()
        with pytest.warns(UserWarning, match="no null of other pictures"):  # it is one picture, twice
            data = judge.judge(own, judged, n=8, **QUIET).data
        assert how == "squash" or set(data["row"].values.tolist()) == {2}, "the only row between two of picture"
        views[how] = np.asarray(judged.asked[0].bare), data.attrs["shown"]
    flat = np.asarray(picture.resize((512, 512), Image.Resampling.LANCZOS))
    assert (views["squash"][0] == flat).all() and "width x 0.50" in views["squash"][1]
    kept = views["pad"][0]
    assert (kept[:128] == 0).all() and (kept[-128:] == 0).all() and "kept" in views["pad"][1]
    assert (kept[128:-128] == np.asarray(picture.resize((512, 256), Image.Resampling.LANCZOS))).all()


def _uri(picture):
    from mosaics import uri

    return uri(picture)


def test_original_pictures_are_shown_where_they_are_given(cells, lenses):
    own = lenses[0]
    large = [mosaic(table, (CELL, CELL)) for table in cells]
    # What stands in for thumbnails has another picture's colours.
    other = np.array([_uri(mosaic(table)) for table in tables(24, seed=8)], object)
    small = workbench.reading.Reading(own.data.assign(picture_data=("picture", other)), own.provenance)
    found = {}
    for name, options in (("thumbnails", {}), ("original", {"pictures": large})):
        data = judge.judge(small, Sees(), n=24, layers=[2], **options, **QUIET).data
        found[name] = float(data["rate"].values[0, 0])
        assert name in data.attrs["shown"]
    assert found["original"] == 1 and found["thumbnails"] < 1
    with pytest.raises(InputError, match="23 pictures were given, and the readings have 24"):
        judge.judge(own, Sees(), n=5, pictures=large[1:], **QUIET)
    with pytest.raises(InputError, match=r"pictures\[\d+\] is 7 x 7 pixels.*112 x 80"):
        judge.judge(own, Sees(), n=5, pictures=[Image.new("RGB", (7, 7))] * 24, **QUIET)


# ---------------------------------------------------------------- what is kept


class Stops(Sees):
    """Fails at a question."""

    def __init__(self, at, error, name="sees"):
        super().__init__(name)
        self.at, self.error = at, error

    def __call__(self, question):
        if len(self.asked) == self.at:
            raise self.error
        return super().__call__(question)


@pytest.mark.parametrize(
    ("error", "workers"), [(JudgeError("busy"), 1), (JudgeError("busy"), 3), (KeyboardInterrupt(), 1)]
)
def test_an_interrupted_run_goes_on_and_asks_nothing_twice(lenses, tmp_path, error, workers):
    options = {"n": 6, "random": NONSENSE, **QUIET}
    whole, alone = Sees(), judge.judge(lenses, counted := Sees(), **options)
    first = Stops(17, error)
    with pytest.raises(type(error)):
        judge.judge(lenses, first, cache=tmp_path, workers=workers, **options)
    again = judge.judge(lenses, second := Sees(), cache=tmp_path, workers=workers, **options)
    once = [q.key for q in (*first.asked, *second.asked)]
    assert len(first.asked) >= 17 and len(once) == len(set(once)) == len(counted.asked)
    assert again.data.identical(alone.data)
    third = judge.judge(lenses, whole, cache=tmp_path, **options)
    assert not whole.asked and third.data.identical(alone.data)


def test_verdicts_are_kept_for_one_judge_and_one_question(lenses, tmp_path):
    options = {"n": 6, "cache": tmp_path, **QUIET}
    judge.judge(lenses[0], one := Says(yes, "yes"), layers=[1], **options)
    judge.judge(lenses[0], other := Says(lambda q: judge.Verdict(), "no"), layers=[1], **options)
    assert len(one.asked) == len(other.asked) > 0
    judge.judge(lenses[0], more := Says(yes, "yes"), **options)
    assert len(more.asked) == 2 * len(one.asked), "the other two layers"
    judge.judge(lenses[0], captions := Says(yes, "yes"), layers=[1], captions=["red"] * 24, **options)
    assert captions.asked, "with a caption it is another question"
    names = [json.loads(path.read_text())["judge"] for path in tmp_path.glob("*/judge.json")]
    assert sorted(names) == ["no", "yes"]


def test_a_damaged_verdict_is_told(lenses, tmp_path):
    judge.judge(lenses[0], Says(yes), n=3, cache=tmp_path, **QUIET)
    path = next(p for p in tmp_path.glob("*/*.json") if p.name != "judge.json")
    path.write_text('{"concrete": ["')
    with pytest.raises(ReadingError, match=f"{path.name} is no verdict.*Delete it"):
        judge.judge(lenses[0], Says(yes), n=3, cache=tmp_path, **QUIET)
    (tmp_path / "file").write_text("")
    with pytest.raises(ReadingError, match="cannot be made a folder"):
        judge.judge(lenses[0], Says(yes), n=3, cache=tmp_path / "file", **QUIET)


# ---------------------------------------------------------------- answers that cannot be read


GOOD = '{"concrete": ["red"], "abstract": [], "global": ["blue"]}'


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (GOOD, True),
        (f"```json\n{GOOD}\n```", True),
        (f"  {GOOD}\n", True),
        ('{"concrete": ["red"], "abstract": [], "global": [], "reasoning": "x"}', True),
        ("", False),
        ("red fits.", False),
        (f"Sure: {GOOD}", False),
        ('{"concrete": ["red"]}', False),
        ('{"concrete": "red", "abstract": [], "global": []}', False),
        ('{"concrete": [1], "abstract": [], "global": []}', False),
        ('["red"]', False),
        ("null", False),
        ('{"concrete": ["red"], "abstract": [], "gl', False),
        ("[" * 100_000, False),
    ],
)
def test_an_answer_is_one_json_object_or_none(text, read):
    verdict = judge.Verdict.parsed(text)
    assert verdict.failed == ("" if read else "unparsed") and verdict.said == text
    assert verdict.fits(("red",)) == (["concrete"] if read else [""])


def test_what_cannot_be_read_is_counted_and_is_no_verdict(lenses):
    """In the published protocol it counts as "not interpretable"."""

    def mumbles(question):
        return judge.Verdict.parsed("hm" if int(question.id[:4], 16) % 3 == 0 else
                                    json.dumps({"concrete": question.words[:1], "abstract": [], "global": []}))

    with pytest.warns(UserWarning, match="could not be read, and count in no share"):
        data = judge.judge(lenses, Says(mumbles), n=30, random=NONSENSE, **QUIET).data
    failed = data["failed"] == "unparsed"
    assert (data["unparsed"] == failed.sum("patch")).all() and 0.2 < float(failed.mean()) < 0.5
    assert (np.isnan(data["interpretable"]) == failed).all()
    assert (data["rate"] == 1).all(), "of those that were read"


def test_a_judge_that_gives_something_else_is_refused(lenses):
    with pytest.raises(InputError, match="gave dict. A judge gives a Verdict"):
        judge.judge(lenses, Says(lambda q: {"concrete": []}), n=3, **QUIET)


# ---------------------------------------------------------------- how sure


def guesses(seed, share):
    """A judge that answers at random, the same to the same question."""

    def rule(question):
        drawn = int(hashlib.blake2b(f"{seed} {question.id}".encode(), digest_size=4).hexdigest(), 16) / 2**32
        return yes(question) if drawn < share else judge.Verdict()

    return Says(rule)


def test_copies_of_pictures_are_one_picture_to_the_test():
    """A judge guesses, the same of equal pictures, each of which is there three times: p holds its level, and would not
    if copies counted.  (Other cases: benchmarks/levels/judge.py.)"""
    reached, naive = 0, 0
    for seed in range(6):
        own = reading(tables(8, (3, 4), seed=seed), share=[0.0] * 24, seed=seed)
        own = workbench.reading.Reading(_repeated(own.data, 3))
        data = judge.judge(own, guesses(seed, 0.4), n=48, seed=seed, draws=256, progress=False).data
        reached += int((data["excess_p"] <= 0.05).sum())
        value = data["interpretable"].values[0]
        alone = Design(n=48).flip((value[0] - value[1]).T, alternative="greater", draws=200)
        naive += int((alone.p <= 0.05).sum())
    # Of 144 layers at most 7 are expected; more than 17 in one of two thousand tests.
    assert reached <= 17 < naive


def _repeated(data, copies):
    """The same prompts several times, with their pictures."""
    n = data.sizes["prompt"]
    found = data.isel(prompt=np.tile(np.arange(n), copies), picture=np.tile(np.arange(n), copies))
    found["picture_prompt"] = "picture", np.arange(n * copies)
    return found


def test_copies_of_a_picture_make_nothing_surer(cells):
    single = reading(cells, share=(0.6,)).data
    one, five = (
        judge.judge(workbench.reading.Reading(_repeated(single, copies)), Sees(), n=24 * copies, **QUIET).data
        for copies in (1, 5)
    )
    assert five.sizes["patch"] == 120
    for name in ("rate_low", "rate_high"):
        assert float(five[name].values[0, 0]) == pytest.approx(float(one[name].values[0, 0]), abs=0.08)
    assert five["rate_low"].attrs["interval"].endswith("24 pictures")


# ---------------------------------------------------------------- results


def test_results_say_what_they_are_and_can_be_kept(lenses, tmp_path):
    found = judge.judge(lenses, Sees(), n=10, random=NONSENSE, **QUIET)
    assert lacking(found.data) == []
    kept = workbench.open(found.save(tmp_path / "judged.nc"))
    for name, variable in found.data.variables.items():
        assert dict(kept.data[name].attrs) == dict(variable.attrs)
        np.testing.assert_array_equal(kept.data[name].values, variable.values)
    assert [step["step"] for step in kept.provenance][-1] == "judge.judge"
    assert kept.provenance[-1]["settings"]["sampled"]["n"] == 10
    frame = found.frame(["lens", "layer"])
    assert len(frame) == 6 and {"rate", "rate_low"} <= set(frame.columns)


def test_the_chart_shows_each_lens_beside_its_nulls(lenses):
    from lenses.judge.figures import JUDGED, judged

    data = judge.judge(lenses, Sees(), n=20, random=NONSENSE, **QUIET).data
    assert JUDGED.lacks(data) == [] and data.attrs["chart"] == "judged"
    assert JUDGED.lacks(lenses[0].data)
    figure = judged(data)
    assert [panel.title for panel in figure.plot.panels] == ["LatentLens", "LogitLens"]
    for i, panel in enumerate(figure.plot.panels):
        *nulls, own = panel.marks
        np.testing.assert_array_equal(own.y, data["rate"].values[i])
        np.testing.assert_array_equal(own.low, data["rate_low"].values[i])
        assert [null.name for null in nulls] == ["null: other picture", "null: random words"]
        assert own.dash == "solid" and all(null.dash != "solid" for null in nulls)
        np.testing.assert_array_equal([null.y for null in nulls], data["rate_null"].values[:, i])
    assert "Null: share of patches with a word that fits, of words of other pictures or at random" in figure.caption()


def test_people_stand_beside_the_judge(lenses):
    options = {"n": 20, "layers": [1, 2], **QUIET}
    people = judge.judge(lenses, Says(guesses(1, 0.5).rule, "people"), **options)
    data = judge.judge(lenses, Sees(), people=people, **options).data
    alone = judge.agreement(judge.judge(lenses, Sees(), **options), people).data
    assert (data["kappa"] == alone["kappa"]).all() and data["among"].values.tolist() == ["all", "own", "other picture"]
    assert lacking(data) == []


def test_what_does_not_fit_together_is_told(cells, lenses):
    other = reading(tables(24, seed=7), share=(0.0, 0.5, 1.0))
    with pytest.raises(InputError, match="differs between the readings"):
        judge.judge({"one": lenses[0], "other": other}, Sees(), **QUIET)
    with pytest.raises(InputError, match="sampled from readings of other pictures"):
        judge.judge(lenses[0], Sees(), patches=judge.sample(other, n=5), **QUIET)
    with pytest.raises(InputError, match="other positions of the same pictures"):
        shifted = workbench.reading.Reading(lenses[0].data.isel(position=slice(1, None)))
        judge.judge(lenses[0], Sees(), patches=judge.sample(shifted, n=5), **QUIET)
    with pytest.raises(InputError, match="same lens.*Give them names"):
        judge.judge([lenses[0], lenses[0]], Sees(), **QUIET)
    with pytest.raises(InputError, match="read at other depths.*LatentLens: layer.*LogitLens"):
        judge.judge([lenses[0], lenses[1].isel(layer=[0, 1])], Sees(), **QUIET)
    with pytest.raises(InputError, match="no layer 7. They have \\[0, 1, 2\\]"):
        judge.judge(lenses, Sees(), layers=[1, 7], **QUIET)
    with pytest.raises(InputError, match="no words by layer and rank"):
        bare = workbench.reading.Reading(lenses[0].data.drop_vars("word"))
        judge.judge(bare, Sees(), **QUIET)
    with pytest.raises(InputError, match="workers=0"):
        judge.judge(lenses, Sees(), workers=0, n=3, **QUIET)
