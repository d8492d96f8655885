"""Judges that come with the library: an endpoint (a server in the test), a local model, people, captions."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from mosaics import NONSENSE, Says, Sees, reading, tables, yes
from PIL import Image

from lenses import judge
from lenses.judge.captions import stems
from lenses.judge.questions import JudgeError, Question
from workbench.errors import InputError, ReadingError

QUIET = {"progress": False, "draws": 200}
GOOD = {"concrete": ["red"], "abstract": [], "global": ["blue"]}


def question(words=("red", "blue", "nothing"), caption=None) -> Question:
    pictures = {"image": (512, 512), "crop": (256, 128), "bare": (512, 512)}
    return Question("q", tuple(words), caption, _draw=lambda what: Image.new("RGB", pictures[what], (9, 9, 200)))


# ---------------------------------------------------------------- an endpoint


@contextmanager
def serving(*answers):
    """A server that gives these answers in turn, the last for ever: (state, headers, body or text of a message)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, dict(self.headers), json.loads(body)))
            state, headers, said = answers[min(len(asked), len(answers)) - 1]
            if not isinstance(said, bytes):
                said = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
            self.send_response(state)
            for name, value in {"Content-Length": str(len(said)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


OK = (200, {}, json.dumps(GOOD))


def test_an_endpoint_is_shown_picture_question_and_crop_in_this_order(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "very-secret")
    with serving(OK) as (url, asked):
        endpoint = judge.Endpoint("seer-1", url, key="SOME_KEY", temperature=0)
        verdict = endpoint(question())
    assert verdict.fits(("red", "blue", "nothing")) == ["concrete", "global", ""]
    ((path, headers, body),) = asked
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer very-secret"
    assert body["model"] == "seer-1" and body["temperature"] == 0
    (message,) = body["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text", "image_url"]
    image, text, crop = message["content"]
    sizes = []
    for part in (image, crop):
        head, data = part["image_url"]["url"].split(",")
        assert head == "data:image/png;base64"
        sizes.append(Image.open(io.BytesIO(base64.b64decode(data))).size)
    assert sizes == [(512, 512), (256, 128)]
    for word in ('"red"', '"blue"', '"nothing"', "concrete:", "abstract:", "global:"):
        assert word in text["text"]
    assert "very-secret" not in endpoint.name and "seer-1" in endpoint.name


def test_the_name_of_an_endpoint_tells_what_changes_its_answers():
    names = {
        judge.Endpoint(*given, **options).name
        for given, options in [
            (("a",), {}), (("b",), {}), (("a", "http://x/v1"), {}), (("a",), {"temperature": 0}),
            (("a",), {"reasoning_effort": "low"}),
        ]
    }  # fmt: skip
    assert len(names) == 5
    assert judge.Endpoint("a", key="ANOTHER", retries=1).name == judge.Endpoint("a").name


def test_a_busy_server_is_asked_again():
    busy = (503, {}, b"busy"), (429, {"Retry-After": "0.01"}, b"slow down"), (500, {}, b"")
    with serving(*busy, OK) as (url, asked):
        assert judge.Endpoint("m", url, wait=0.001)(question()).concrete == ("red",)
        assert len(asked) == 4
    with serving((503, {}, b"busy")) as (url, asked):
        with pytest.raises(JudgeError, match="no answer in 3 attempts, the last: 503.*busy.*run the same again"):
            judge.Endpoint("m", url, wait=0.001, retries=2)(question())
        assert len(asked) == 3


def test_a_server_that_refuses_is_not_asked_again(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving((401, {}, b'{"error": "no key"}')) as (url, asked):
        with pytest.raises(JudgeError, match="401.*no key.*OPENAI_API_KEY is not set"):
            judge.Endpoint("m", url, wait=0.001)(question())
        assert len(asked) == 1 and "Authorization" not in asked[0][1]
        monkeypatch.setenv("OPENAI_API_KEY", "very-secret")
        with pytest.raises(JudgeError) as caught:
            judge.Endpoint("m", url)(question())
        assert "very-secret" not in str(caught.value)
    with serving((200, {}, b"<html>hello")) as (url, _):
        with pytest.raises(JudgeError, match="no chat completion but '<html>hello'.*/v1"):
            judge.Endpoint("m", url)(question())
    with pytest.raises(JudgeError, match="no answer in 2 attempts"):
        judge.Endpoint("m", url, wait=0.001, retries=1)(question())  # nobody is there any more


@pytest.mark.parametrize("said", ["I see a cat.", None, "", [{"type": "text", "text": "red"}]])
def test_what_a_model_says_that_is_no_json_is_unparsed(said):
    with serving((200, {}, said)) as (url, _):
        assert judge.Endpoint("m", url)(question()).failed == "unparsed"


def test_a_run_against_a_server_goes_on_after_its_failure(tmp_path):
    own = reading(tables(6))
    options = {"n": 6, "cache": tmp_path, "workers": 2, **QUIET}
    with serving(OK, OK, OK, (401, {}, b"no")) as (url, first):
        with pytest.raises(JudgeError):
            judge.judge(own, judge.Endpoint("m", url, wait=0.001), **options)
    kept = len(list(tmp_path.glob("*/*.json"))) - 1
    assert kept == 3
    with serving(OK) as (again, second):
        endpoint = judge.Endpoint("m", again)
        endpoint.name = judge.Endpoint("m", url).name  # another port
        data = judge.judge(own, endpoint, **options).data
    assert len(second) == data.attrs["questions"] - 3


# ---------------------------------------------------------------- a local model


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_a_local_model_is_shown_two_pictures_and_writes_without_chance(kind):
    from pictured import pictured

    module, processor = pictured(kind)
    seer = judge.LocalModel(module, processor, max_new_tokens=6)
    one, two = seer(question()), seer(question())
    assert one == two and one.failed == "unparsed" and one.said  # its weights are random
    module.get_input_embeddings().weight.data += 0.1
    assert judge.LocalModel(module, processor, max_new_tokens=6).name != seer.name, "other weights, another judge"


@pytest.mark.parametrize("template", [True, False])
def test_a_local_models_answer_is_read_behind_its_prompt(template):
    import torch
    from transformers import GPT2Config

    class Writes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.config = torch.nn.Parameter(torch.zeros(1)), GPT2Config()

        def generate(self, input_ids, pixel_values, **options):
            self.given = input_ids, pixel_values, options
            return torch.cat([input_ids, torch.tensor([[7, 8]])], 1)

    class Processes:
        image_processor, image_token = object(), "<picture>"
        chat_template = "a template" if template else None
        tokenizer = SimpleNamespace(decode=lambda ids, **_: json.dumps(GOOD) if ids.tolist() == [7, 8] else "")

        def apply_chat_template(self, turns, add_generation_prompt):
            assert add_generation_prompt
            return "".join(part.get("text", self.image_token) for part in turns[0]["content"])

        def __call__(self, images, text, return_tensors):
            self.given = images, text
            return {"input_ids": torch.arange(5)[None], "pixel_values": torch.zeros(2, 3, 4, 4, dtype=torch.float64)}

    module, processor = Writes(), Processes()
    verdict = judge.LocalModel(module, processor, num_beams=2)(question())
    assert verdict.concrete == ("red",) and verdict.elsewhere == ("blue",)
    images, text = processor.given
    assert [image.size for image in images] == [(512, 512), (256, 128)]
    before, between, after = re.split("<picture>", text)
    assert not before.strip() and '"nothing"' in between and not after.strip()
    assert module.given[1].dtype == torch.float32 and module.given[2]["do_sample"] is False
    assert module.given[2]["num_beams"] == 2


def test_a_model_without_pictures_is_no_judge():
    with pytest.raises(InputError, match="takes no pictures"):
        judge.LocalModel("organism:story")


# ---------------------------------------------------------------- people


def fill(path, relation) -> None:
    """Fill in the table that a person was given: relation(word) or "" to leave it."""
    with (path / "questions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (path / "answers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "relation": relation(row)} for row in rows)


def test_people_answer_in_a_table(tmp_path):
    own = reading(tables(12), share=(0.5,))
    options = {"n": 12, "random": NONSENSE, **QUIET}
    waiting = judge.judge(own, judge.Person(tmp_path / "ada"), **options)
    data = waiting.data
    assert np.isnan(data["rate"]).all() and (data["unanswered"] == 12).all() and not data["unparsed"].any()
    seen = judge.judge(own, sees := Sees(), **options)
    fits = {q.id: set(sees(q).concrete) for q in list(sees.asked)}
    fill(tmp_path / "ada", lambda row: "Concrete " if row["word"] in fits[row["question"]] else "none")
    data = judge.judge(own, judge.Person(tmp_path / "ada"), **options).data
    assert data["interpretable"].equals(seen.data["interpretable"]) and not data["unanswered"].any()
    # With another seed words are shown in another order, and answers keep their words.
    patches = judge.sample(own, n=12)
    other = judge.judge(own, judge.Person(tmp_path / "ada"), patches=patches, n=12, seed=5, **QUIET).data
    known = other["failed"].sel(arm="own") == ""
    assert known.all() and (other["relation"].sel(arm="own") == data["relation"].sel(arm="own")).all()


def test_questions_without_an_answer_are_in_no_share(tmp_path):
    own = reading(tables(10), share=(1.0,))
    judge.judge(own, judge.Person(tmp_path), n=10, **QUIET)
    with (tmp_path / "questions.csv").open() as file:
        some = set(list(dict.fromkeys(row["question"] for row in csv.DictReader(file)))[::2])
    fill(tmp_path, lambda row: {"1": "global"}.get(row["candidate"], "") if row["question"] in some else "")
    data = judge.judge(own, judge.Person(tmp_path), n=10, **QUIET).data
    answered = np.isin(data["question"].values, list(some))
    assert (np.isfinite(data["interpretable"]) == answered).all()
    assert (data["failed"].values[~answered] == "unanswered").all()
    assert (data["interpretable"].values[answered] == 1).all() and int(data["unanswered"].sum()) == 20 - len(some)


def test_the_page_tells_words_and_boxes_and_no_arm(tmp_path):
    texts = ["</script><b>", "=1+1", "red", "a\"b,c\nd", "לבן"]
    own = reading(tables(6), words=lambda p, layer, r, c: [*texts[:4], f"w{p}"])
    judge.judge({"TheLens": own}, judge.Person(tmp_path), n=6, random=texts, **QUIET)
    page = (tmp_path / "questions.html").read_text("utf-8")
    given = json.loads(re.findall(r'type="application/json" id="given">(.*?)</script>', page, re.DOTALL)[0])
    shown = Says(yes)
    judge.judge({"TheLens": own}, shown, n=6, random=texts, **QUIET)
    asked = {q.id: q for q in shown.asked}
    assert {q["id"] for q in given["questions"]} == set(asked)
    for own in given["questions"]:
        assert own["words"] == sorted(asked[own["id"]].words)
        np.testing.assert_allclose(own["box"], np.multiply(asked[own["id"]].box, 100 / 512), atol=0.01)
    assert len(given["pictures"]) == 6, "each picture once"
    for name in ("TheLens", "other picture", "random words", "http://", "https://"):
        assert name not in page
    with (tmp_path / "questions.csv").open(newline="") as file:
        words = {row["word"] for row in csv.DictReader(file)}
    assert {"</script><b>", "=1+1", 'a"b,c\nd'} <= words


def test_answers_are_kept_in_the_page_and_the_table(tmp_path):
    own = reading(tables(4))
    judge.judge(own, judge.Person(tmp_path), n=4, **QUIET)
    fill(tmp_path, lambda row: "abstract" if row["candidate"] == "2" else "")
    judge.judge(own, judge.Person(tmp_path), n=4, **QUIET)
    page = (tmp_path / "questions.html").read_text("utf-8")
    given = json.loads(re.findall(r'id="given">(.*?)</script>', page, re.DOTALL)[0])["questions"]
    assert all(q["known"] == {str(i): "abstract" if i == 2 else "none" for i in range(1, 6)} for q in given)
    with (tmp_path / "questions.csv").open() as file:
        assert {r["relation"] for r in csv.DictReader(file) if r["candidate"] == "2"} == {"abstract"}


def test_a_table_of_another_country_is_read_and_a_wrong_one_told(tmp_path):
    own = reading(tables(4))
    judge.judge(own, judge.Person(tmp_path), n=4, **QUIET)
    fill(tmp_path, lambda row: "none")
    path = tmp_path / "answers.csv"
    path.write_text("\ufeff" + path.read_text().replace(",", ";"), "utf-8")
    assert not judge.judge(own, judge.Person(tmp_path), n=4, **QUIET).data["unanswered"].any()
    path.write_text("question,candidate,word,relation\nabc,1,red,none\nabc,2,blue,maybe\n")
    with pytest.raises(ReadingError, match="line 3: relation 'maybe' of candidate '2'.*concrete, abstract"):
        judge.judge(own, judge.Person(tmp_path), n=4, **QUIET)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ReadingError, match="no column 'question'"):
        judge.judge(own, judge.Person(tmp_path), n=4, **QUIET)


# ---------------------------------------------------------------- captions


def test_words_of_the_caption_fit_by_their_stems():
    words = ["Boats", "##paint", "walking", "of", "the", "dog", "ca"]
    said = judge.Captions()(question(words, "A boat. Two dogs walk out of the car."))
    assert said.elsewhere == ("Boats", "walking", "dog")
    assert stems("puzzles and parties, painted shapes") == {"puzzl", "part", "paint", "shap"}


def test_the_judge_of_captions_wants_captions():
    own = reading(tables(5))
    with pytest.raises(InputError, match="Give captions="):
        judge.judge(own, judge.Captions(), n=5, **QUIET)
    with pytest.raises(InputError, match="4 captions were given, and the readings have 5 pictures"):
        judge.judge(own, judge.Captions(), n=5, captions=["x"] * 4, **QUIET)


def test_captions_know_what_is_in_their_picture_and_the_null_what_is_in_others():
    own = reading(tables(20), words=lambda p, layer, r, c: [f"thing{'abcdefghijklmnopqrst'[p]}", "boat"])
    captions = [f"A thing{'abcdefghijklmnopqrst'[p]} in the sun{' by a boat' * (p < 5)}." for p in range(20)]
    data = judge.judge(own, judge.Captions(), n=20, captions=captions, **QUIET).data
    assert data["rate"].values.tolist() == [[1]]
    assert float(data["rate_null"].values[0, 0, 0]) == 0.25, "a boat is in five of twenty"
    assert float(data["excess_p"].values[0, 0, 0]) < 0.01


def test_synonyms_come_from_wordnet_where_it_is_installed(monkeypatch):
    known = {"canine": ["dog", "domestic_dog"], "dog": ["dog", "canine"]}
    wordnet = SimpleNamespace(
        ensure_loaded=lambda: None,
        synsets=lambda word: [SimpleNamespace(lemma_names=lambda: known[word])] if word in known else [],
    )
    corpus, nltk = ModuleType("nltk.corpus"), ModuleType("nltk")
    corpus.wordnet, nltk.corpus = wordnet, corpus
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)
    asked = question(["canine", "boat"], "Two dogs.")
    assert judge.Captions(wordnet=True)(asked).elsewhere == ("canine",)
    assert judge.Captions()(asked).elsewhere == ()
    assert judge.Captions(wordnet=True).name != judge.Captions().name

    def lacks():
        raise LookupError

    wordnet.ensure_loaded = lacks
    with pytest.raises(InputError, match="without the data of WordNet"):
        judge.Captions(wordnet=True)
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(ImportError, match="pip install nltk"):
        judge.Captions(wordnet=True)
