"""Prompts with pictures: in every form that users have them, read as transformers does, or refused with the reason."""

import base64
import io
import warnings

import numpy as np
import pytest
import torch
from pictured import drawn, loaded, text_with_image
from PIL import Image
from tokenizers import processors

import workbench
from workbench.errors import InputError, Refused
from workbench.images.pictures import Picture
from workbench.inputs import encode
from workbench.readers import States

TYPES = ("llava", "qwen2_5_vl", "idefics3", "gemma3", "mistral3")
STARTLESS = ("llava", "idefics3", "mistral3")


@pytest.fixture(scope="module")
def models():
    """Each type once, when it is first asked for."""
    known = {}
    return lambda name: known.setdefault(name, loaded(name)) if name not in known else known[name]


@pytest.fixture(scope="module")
def llava(models):
    return models("llava")


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*has a first token.*")
        yield


def states(model, inputs, **options):
    return workbench.read(model, inputs, States(), progress=False, **options).data


def alone(model, text, images, **options):
    """[layer, position, width] of transformers' own pass over what its processor gives; and the ids.

    Its last entry is the state behind the final norm, and left out.
    """
    given = model.processor(text=[text], images=[images], return_tensors="pt", **options)
    with torch.no_grad():
        found = model.module(**given, output_hidden_states=True, use_cache=False).hidden_states
    return torch.stack(found)[:-1, 0].numpy(), given["input_ids"][0].tolist()


def same(mine, theirs, prompt=0):
    states, ids = theirs
    assert mine["input_id"].values[prompt, : len(ids)].tolist() == ids
    own = mine["state"].values[prompt, : len(states), : len(ids)]
    np.testing.assert_allclose(own, states, rtol=1e-5, atol=1e-5 * np.abs(states).max())


def said(model, inputs, error=InputError, **options):
    with pytest.raises(error) as found:
        workbench.read(model, inputs, States(0), progress=False, **options)
    return str(found.value)


# ---------------------------------------------------------------- read as transformers does


@pytest.mark.parametrize("name", TYPES)
def test_states_are_those_of_the_processor_and_model_alone_however_prompts_are_batched(models, name):
    model = models(name)
    one, two = drawn(), drawn(70, 48, seed=1)
    text, double = text_with_image(model.processor), text_with_image(model.processor, 2, "blue")
    inputs = [{"text": text, "images": one}, "a red ball and", {"text": double, "images": [two, one]}]
    wanted = [alone(model, text, [one]), None, alone(model, double, [two, one])]
    plain = torch.tensor([model.tokenizer("a red ball and")["input_ids"]])
    with torch.no_grad():
        own = torch.stack(model.module(input_ids=plain, output_hidden_states=True).hidden_states)[:-1, 0].numpy()
    wanted[1] = own, plain[0].tolist()
    for options in ({}, {"batch_size": 1}, {"padding_side": "left"}, {"engine": "prefix"}):
        found = states(model, inputs, **options)
        for prompt, theirs in enumerate(wanted):
            same(found, theirs, prompt)
    assert (found["kind"].values[1] != "image").all()
    assert found["picture_prompt"].values.tolist() == [0, 2, 2]
    assert found["picture_image"].values.tolist() == [0, 0, 1]
    assert set(found["image"].values[2]) == {-1, 0, 1}


@pytest.mark.parametrize("name", TYPES)
def test_chats_are_what_transformers_makes_of_them(models, name, tmp_path):
    model, picture = models(name), drawn()
    path = tmp_path / "a.png"
    picture.save(path)
    uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()

    def chat(part):
        talk = [{"type": "text", "text": "what is"}, part, {"type": "text", "text": "it"}]
        return [{"role": "system", "content": "be brief"}, {"role": "user", "content": talk}]

    given = model.processor.apply_chat_template(
        chat({"type": "image", "image": picture}), tokenize=True, return_dict=True, return_tensors="pt",
        add_generation_prompt=True,
    )  # fmt: skip
    with torch.no_grad():
        theirs = torch.stack(model.module(**given, output_hidden_states=True).hidden_states)[:-1, 0].numpy()
    parts = [
        {"type": "image", "image": picture}, {"type": "image", "url": str(path)}, {"type": "image", "path": path},
        {"type": "image", "base64": uri.partition(",")[2]}, {"type": "image_url", "image_url": {"url": uri}},
        {"type": "input_image", "image_url": uri}, {"image": picture},
    ]  # fmt: skip
    chats = [chat(part) for part in parts] + [{"text": chat({"type": "image"}), "images": [picture]}]
    found = states(model, chats)
    for prompt in range(len(chats)):
        same(found, (theirs, given["input_ids"][0].tolist()), prompt)


def test_pictures_beside_a_chat_fill_its_empty_places(llava):
    one, two = drawn(), drawn(70, 48, seed=1)
    chat = [{"role": "user", "content": [{"type": "image"}, "and", {"type": "image", "image": one}]}]
    found = states(llava, {"text": chat, "images": two})
    assert found["picture_width"].values.tolist() == [70, 50]
    assert "has 1 place(s) without a picture, and 2 came" in said(llava, {"text": chat, "images": [two, one]})
    assert "has 1 place(s) without a picture, and 0 came" in said(llava, chat)


def test_what_a_template_would_leave_out_without_a_word_gets_into_the_text(models):
    """LLaVA's template takes parts alone, and Pixtral's system turn is a string."""
    model = models("llava")
    kept = model.processor.chat_template
    parted = (
        "{% for m in messages %}{{ m.role }}: {% for p in m.content | selectattr('type', 'equalto', 'image') %}<image>"
        "{% endfor %}{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }}{% endfor %}"
        "{% endfor %}"
    )
    whole = (
        "{{ messages[0].content }}! {% for p in messages[1].content %}"
        "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}"
    )
    turn = {"role": "user", "content": [{"type": "image", "image": drawn()}, {"type": "text", "text": "what"}]}
    try:
        for template, says in ((parted, "be briefuser: <image>what"), (whole, "be brief! <image>what")):
            model.processor.chat_template = template
            for system in ("be brief", [{"type": "text", "text": "be brief"}]):
                found = encode(model, [{"role": "system", "content": system}, turn])
                assert found[0].text.endswith(says)
        model.processor.chat_template = "{{ raise_exception('roles must alternate') }}"
        assert "template of llava does not take prompt 0: roles must alternate" in said(model, [turn])
    finally:
        model.processor.chat_template = kept


@pytest.mark.parametrize("name", TYPES)
def test_what_a_processor_returned_is_read_too(models, name):
    model, text, picture = models(name), text_with_image(models(name).processor), drawn()
    wanted, whole = alone(model, text, [picture]), states(model, {"text": text, "images": picture})
    for kind in ("pt", "np"):
        found = states(model, model.processor(text=[text], images=[picture], return_tensors=kind))
        same(found, wanted)
        assert (found["kind"].values == whole["kind"].values).all()
        assert (found["row"].values == -1).all() and np.isnan(found["box"].values).all()
        assert "picture_data" not in found
    two = model.processor(text=[text] * 2, images=[[picture]] * 2, return_tensors="pt")
    assert "which prompt cannot be told" in said(model, two)
    del two
    lost = dict(model.processor(text=[text], images=[picture], return_tensors="pt"))
    ids = [i for i in lost["input_ids"][0].tolist() if i not in model.vision.proof.tokens]
    lost = {k: v for k, v in lost.items() if k.startswith(("pixel", "image"))}
    assert "had no place for them" in said(model, {**lost, "input_ids": [ids]})


def test_a_model_without_a_processor_reads_what_one_returned_and_no_pictures(llava):
    bare = workbench.load(llava.module, tokenizer=llava.tokenizer, name="bare")
    text = text_with_image(llava.processor)
    given = llava.processor(text=[text], images=[drawn()], return_tensors="pt")
    found = states(bare, given)
    same(found, alone(llava, text, [drawn()]))
    assert (found["kind"].values == "image").sum() == 16
    assert "without a processor" in said(bare, {"text": text, "images": drawn()})
    story = workbench.load("organism:story")
    for inputs in ({"text": "a", "images": drawn()}, [{"role": "user", "content": [{"image": drawn()}]}]):
        assert "without a processor" in said(story, inputs)


def test_an_untrained_twin_has_the_processor_and_a_proof_of_its_own(llava):
    twin = llava.untrained()
    assert twin.processor is llava.processor and twin.vision.proof is not llava.vision.proof
    text = text_with_image(llava.processor)
    same(states(twin, {"text": text, "images": drawn()}), alone(twin, text, [drawn()]))


def test_a_run_with_pictures_goes_on_where_it_was_stopped(llava, tmp_path):
    text = text_with_image(llava.processor)
    inputs = {"text": [text] * 3, "images": [drawn(seed=i) for i in range(3)]}
    whole = states(llava, inputs)
    again = states(llava, inputs, out=tmp_path / "run")
    kept = states(llava, inputs, out=tmp_path / "run")
    opened = workbench.open(tmp_path / "run").data
    for found in (again, kept, opened):
        assert found["kind"].equals(whole["kind"])
        np.testing.assert_array_equal(found["state"].values, whole["state"].values)
    other = {"text": [text] * 3, "images": [drawn(seed=i) for i in range(1, 4)]}
    with pytest.raises(InputError):
        states(llava, other, out=tmp_path / "run")


def test_positions_by_kind(llava):
    text = text_with_image(llava.processor)
    given = {"text": text, "images": drawn()}
    whole = states(llava, given)
    for kind in ("image", "text"):
        found = states(llava, given, positions=kind)
        assert (found["kind"].values == kind).all()
        at = np.flatnonzero(whole["kind"].values[0] == kind)
        np.testing.assert_array_equal(found["state"].values[0], whole["state"].values[0][:, at])
    assert "Prompt 1 has no position that shows a part of a picture" in said(llava, [given, "a"], positions="image")


def test_continuing_a_text_with_a_picture_is_refused(llava):
    given = {"text": text_with_image(llava.processor), "images": drawn()}
    with pytest.raises(InputError, match=r"generate\(\) continues texts, and a prompt has images"):
        workbench.generate(llava, given, max_new_tokens=1, progress=False)


# ---------------------------------------------------------------- first tokens, and tokens that begin a picture


def test_the_first_token_is_put_once():
    model = loaded("llava")
    text, picture = text_with_image(model.processor), drawn()

    def ids(inputs, **options):
        return encode(model, inputs, **options)[0].ids

    plain = ids({"text": text, "images": picture})
    assert ids({"text": text, "images": picture}, bos=True) == [1, *plain]
    assert ids({"text": text, "images": picture}, bos="</s>") == [2, *plain]
    backend = model.tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    model = workbench.load(model.module, processor=model.processor, name="begins")
    for given in (text, f"<s>{text}"):
        inputs = {"text": given, "images": picture}
        assert ids(inputs) == ids(inputs, bos=True) == [1, *plain]
        found = encode(model, inputs, bos=True)[0]
        assert found.ids[int(found.visual.at[0])] in model.vision.proof.tokens
    assert ids({"text": text, "images": picture}, bos=False) == plain
    chat = [{"role": "user", "content": [{"image": picture}]}]
    with_it = model.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": picture}]}], tokenize=True, return_dict=True,
        return_tensors="pt", add_generation_prompt=True,
    )["input_ids"][0].tolist()  # fmt: skip
    assert ids(chat) == with_it and with_it[0] == 1
    with pytest.raises(InputError, match="bos=True is for texts"):
        encode(model, chat, bos=True)


def test_a_picture_without_the_token_that_begins_it_is_told_of():
    for name in ("qwen2_vl", "qwen2_5_vl"):
        model = loaded(name)
        assert model.vision.proof.begins == model.module.config.vision_start_token_id
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", ".*has a first token.*")
            encode(model, {"text": text_with_image(model.processor), "images": drawn()})
        bare = {"text": "<|image_pad|> a red ball", "images": drawn()}
        with pytest.warns(UserWarning, match=r"Prompt 0 has 1 picture\(s\) without '<\|vision_start\|>' in front"):
            encode(model, bare)
        same(states(model, bare), alone(model, bare["text"], [drawn()]))


@pytest.mark.parametrize("name", STARTLESS)
def test_models_without_such_a_token_miss_none(models, name):
    assert models(name).vision.proof.begins is None


# ---------------------------------------------------------------- what is no prompt


@pytest.mark.parametrize("name", TYPES)
def test_texts_and_pictures_that_do_not_fit_together(models, name):
    model, picture = models(name), drawn()
    text, double = text_with_image(model.processor), text_with_image(model.processor, 2)
    for given, says in (
        ({"text": "a ball", "images": picture}, r"has 1 picture(s) and its text names 0: write '"),
        ({"text": text, "images": [picture] * 2}, "has 2 picture(s) and its text names 1: write '"),
        ({"text": double, "images": [picture]}, "has 1 picture(s) and its text names 2: write '"),
        (text, "1 place(s) for a picture"), ({"text": text}, "no picture came with it"),
        ({"text": text, "images": []}, "no picture came with it"),
        ([model.vision.proof.tokens[0], 5, 6], "no picture came with it"),
        ({"text": [text, text], "images": [picture]}, "has 2 texts and 1 images"),
        ({"text": [text, text], "images": picture}, "has 2 texts and 1 images"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}, 3], "no role"),
        ({"text": [{"role": "user", "content": "a"}], "images": picture}, "its text names 0"),
        ([{"role": "user", "content": [{"type": "video", "video": "a"}]}], "a part of type 'video', which is not read"),
        ([{"role": "user", "content": [{"type": "text"}]}], "of type 'text' without a text"),
        ([{"role": "user", "content": [3]}], "a part that is a int"),
    ):  # fmt: skip
        assert says in said(model, given), says
    named = [{"role": "user", "content": text}]
    assert states(model, {"text": named, "images": picture})["picture_width"].values.tolist() == [50]
    some = states(model, {"text": [text, "a ball"], "images": [[picture], []]})
    assert (some["kind"].values[1] != "image").all()


def test_a_pass_that_fails_on_a_picture_says_on_which(models):
    assert "A pass of mistral3 on the picture(s) of prompt 0 (pixel_values" in said(
        models("mistral3"), {"text": text_with_image(models("mistral3").processor), "images": drawn(1, 1)}, Refused
    )


# ---------------------------------------------------------------- pictures of every kind


def bytes_of(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def rgb(source):
    return np.asarray(Picture(source).rgb)


def test_pictures_in_every_form_have_the_same_pixels(tmp_path):
    picture = drawn()
    array, png = np.asarray(picture), bytes_of(picture, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(png)
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    opaque = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    for source in (
        picture, path, str(path), png, bytearray(png), memoryview(png), uri, path.as_uri(), io.BytesIO(png), array,
        array.transpose(2, 0, 1), array / 255, array.astype(np.int64), torch.tensor(array), opaque,
        torch.tensor(array).permute(2, 0, 1) / 255, (torch.tensor(array) / 255).double(), Image.open(path),
    ):  # fmt: skip
        np.testing.assert_array_equal(rgb(source), array)
    with path.open("rb") as file:
        np.testing.assert_array_equal(rgb(file), array)
    np.testing.assert_array_equal(rgb(array[..., 0]), np.repeat(array[..., :1], 3, -1))
    np.testing.assert_array_equal(rgb(array[..., 0] > 99)[..., 1], 255 * (array[..., 0] > 99))


@pytest.mark.parametrize("mode, form", [("CMYK", "JPEG"), ("P", "PNG"), ("1", "PNG"), ("LA", "PNG"), ("YCbCr", "TIFF")])
def test_modes_are_made_rgb_as_pillow_does(mode, form):
    data = bytes_of(drawn().convert(mode), form)
    np.testing.assert_array_equal(rgb(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_deep_grey_is_scaled_and_transparency_told_of():
    grey = np.asarray(drawn().convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(rgb(bytes_of(deep, "PNG"))[..., 0], grey)
    palette = drawn().convert("P")
    clear = int(np.asarray(palette)[0, 0])
    with pytest.warns(UserWarning, match="transparent parts.*the colours that lie beneath are read"):
        found = rgb(bytes_of(palette, "PNG", transparency=clear))
    np.testing.assert_array_equal(found, np.asarray(palette.convert("RGB")))


def test_pictures_are_turned_as_the_camera_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Picture(bytes_of(drawn(), "PNG", exif=exif))
    assert (turned.width, turned.height) == (40, 50)
    np.testing.assert_array_equal(np.asarray(turned.rgb), np.rot90(np.asarray(drawn()), -1))


def test_the_first_picture_of_a_camera_file_with_previews_is_read():
    data = bytes_of(drawn(), "MPO", save_all=True, append_images=[drawn(seed=1)])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.abs(rgb(data).astype(int) - np.asarray(drawn()).astype(int)).mean() < 5


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_moving_pictures_are_refused_and_their_frames_read(form):
    data = bytes_of(drawn(), form, save_all=True, append_images=[drawn(seed=1), drawn(seed=2)])
    with pytest.raises(InputError, match="has 3 frames, and one picture is read. Choose a frame"):
        Picture(data)
    opened = Image.open(io.BytesIO(data))
    opened.seek(1)
    assert rgb(opened.convert("RGB")).shape == (40, 50, 3)


def test_files_that_are_no_pictures(tmp_path):
    png, jpeg = bytes_of(drawn(), "PNG"), bytes_of(drawn(), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "cut.png").write_bytes(png[: len(png) // 2])
    (tmp_path / "head.png").write_bytes(png[:20] + bytes(40) + png[60:])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, says in (
        ("cut.jpg", "runcated"), ("cut.png", "damaged or cut off"), ("head.png", "no picture that Pillow"),
        ("text.png", "no picture that Pillow"), ("empty.png", "no picture that Pillow"),
        ("gone.png", "there is no file"), (".", "is a folder. Give the pictures in it"),
    ):  # fmt: skip
        for source in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(InputError, match=f"^Picture 3 of prompt 2.*{says}"):
                Picture(source, "Picture 3 of prompt 2")
    for source in ("data:image/png;base64,@@@@", "data:image/png,abc", b"", png[:30], "x" * 5000):
        with pytest.raises(InputError):
            Picture(source)


@pytest.mark.parametrize("source, says", [
    (3, "is a int"), ({"url": "a"}, "is a dict"), ([[1]], "is a list"), (np.zeros((5, 5, 5)), "shape"),
    (np.zeros((1, 2, 4, 4)), "shape"), (np.full((4, 4, 3), np.nan), "NaN"), (np.full((4, 4), 2.0), "from 2 to 2"),
    (np.full((4, 4), -1.0), "from -1 to -1"), (np.full((4, 4), 256), "pictures have 0 to 255"),
    (np.full((4, 4), 1j), "array of complex128"), (np.zeros((0, 4)), "shape"), (Image.new("F", (4, 4)), "mode F"),
    (io.StringIO("a"), "opened as text"),
])  # fmt: skip
def test_values_that_are_no_pictures(source, says):
    with pytest.raises(InputError, match=says):
        Picture(source)


def test_small_long_and_large_pictures(llava):
    for size in ((1, 1), (1, 500), (500, 1), (5000, 4000)):
        found = states(llava, {"text": text_with_image(llava.processor), "images": Image.new("RGB", size, "teal")})
        assert (found["picture_width"].item(), found["picture_height"].item()) == size
        assert (found["kind"].values == "image").sum() == 16
        placed = min(size) > 1
        assert ((found["row"].values >= 0) == ((found["kind"].values == "image") & placed)).all()
        assert len(found["picture_data"].item()) < 40_000
    with pytest.raises(InputError, match="too large to be opened safely"):
        Picture(bytes_of(Image.new("1", (10_000, 10_000)), "PNG"))
