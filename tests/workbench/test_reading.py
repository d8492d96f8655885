"""Readings on disk: identical when reopened, whole or not there, refused when damaged or foreign."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from tiny import prompts

import workbench
from lenses import EmbeddingLens, LogitAttribution, LogitLens
from workbench.errors import InputError, ReadingError
from workbench.reading import Reading, tidy


@pytest.fixture(scope="module")
def readings(llama):
    return workbench.read(llama, prompts(), [LogitLens(), EmbeddingLens(), LogitAttribution()], progress=False)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_reopened_is_identical(readings, which, tmp_path):
    path = readings[which].save(tmp_path / "r.nc")
    again = workbench.open(path)
    assert again.data.identical(readings[which].data)
    assert again.provenance == readings[which].provenance
    assert [p.name for p in tmp_path.iterdir()] == ["r.nc"]


def test_provenance_says_where_it_comes_from(readings, llama):
    origin = readings[0].provenance
    assert origin["model"]["fingerprint"] == llama.fingerprint
    assert origin["anatomy"]["proof"]["error"] < 1e-4
    assert origin["reader"]["name"] == "LogitLens"
    assert {"torch", "transformers", "python"} <= set(origin["versions"])


def test_damage_is_an_error(readings, tmp_path):
    path = readings[0].save(tmp_path / "r.nc")
    whole = path.read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("text", b"not a reading"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ReadingError):
            workbench.open(tmp_path / name)
    with pytest.raises(ReadingError, match="no reading at"):
        workbench.open(tmp_path / "nowhere.nc")


def test_a_flipped_bit_in_the_numbers_is_an_error(llama, tmp_path):
    reading = workbench.read(llama, prompts(40), LogitLens(), progress=False)
    path = reading.save(tmp_path / "r.nc")
    raw = bytearray(path.read_bytes())
    caught = 0
    places = np.linspace(len(raw) * 0.2, len(raw) * 0.8, 12).astype(int)
    for place in places:
        broken = bytearray(raw)
        broken[place] ^= 0xFF
        path.write_bytes(broken)
        try:
            caught += not workbench.open(path).data.identical(reading.data)
            assert workbench.open(path).data.identical(reading.data), "other numbers were read without an error"
        except ReadingError:
            caught += 1
    assert caught > 0


def test_foreign_and_newer_files_are_refused(readings, tmp_path):
    xr.Dataset({"a": ("x", [1, 2])}).to_netcdf(tmp_path / "foreign.nc", engine="h5netcdf")
    with pytest.raises(ReadingError, match="not one that the workbench wrote"):
        workbench.open(tmp_path / "foreign.nc")
    data = readings[0].data.copy()
    data.attrs = {"workbench_format": "latent-workbench reading", "workbench_version": 99, "provenance": "{}"}
    data.to_netcdf(tmp_path / "newer.nc", engine="h5netcdf")
    with pytest.raises(ReadingError, match="upgrade"):
        workbench.open(tmp_path / "newer.nc")


def test_a_full_disk_loses_nothing(readings, tmp_path, monkeypatch):
    path = readings[0].save(tmp_path / "r.nc")
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    with pytest.raises(ReadingError, match="No space left"):
        readings[0].save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.nc"]
    with pytest.raises(ReadingError, match="cannot be written"):
        readings[0].save(tmp_path / "no" / "folder" / "r.nc")


def test_opens_without_torch(readings, tmp_path):
    path = readings[0].save(tmp_path / "r.nc")
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; import workbench;"
        f"r = workbench.open({str(path)!r}); print(len(r.frame()), r.data.sizes['layer'])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) == sum(map(len, prompts())) * 5 * 10
    assert out[1] == "5"


def test_importing_costs_nothing():
    heavy = "('torch', 'transformers', 'plotly', 'xarray')"
    code = f"import sys, workbench, lenses, probes; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_frame_has_no_padding(readings):
    table = readings[0].frame()
    assert len(table) == sum(map(len, prompts())) * 5 * 10
    assert {"prompt", "layer", "position", "rank", "token_id", "token", "logprob", "input_token"} <= set(table)


def test_a_part_is_a_reading(readings, tmp_path):
    whole = readings[0]
    last = whole.data.sizes["position"] - 1
    part = whole.isel(prompt=0, position=slice(0, 2), layer=[0, -1])
    assert part.data.sizes["prompt"] == 1
    assert part.data["layer"].values.tolist() == whole.data["layer"].values[[0, -1]].tolist()
    np.testing.assert_array_equal(part.data["token_id"], whole.data["token_id"].values[:1][:, [0, -1], :2])
    assert part.provenance == whole.provenance
    xr.testing.assert_identical(workbench.open(part.save(tmp_path / "part.nc")).data, part.data)
    assert len(part.frame()) == 2 * 2 * whole.data.sizes["rank"]
    named = whole.sel(layer=1)
    np.testing.assert_array_equal(named.data["entropy"].values[:, 0], whole.data["entropy"].sel(layer=1))
    with pytest.raises(InputError, match=r"no dimension 'layers'. It has: .*layer"):
        whole.isel(layers=1)
    with pytest.raises(InputError, match=r"The reading holds layer: 0, 1"):
        whole.sel(layer=99)
    with pytest.raises(InputError, match=r"holds position: 0"):
        whole.isel(position=last + 1)


def test_prompts_that_are_chosen_have_their_own_pictures():
    """Prompt 0 has two pictures, prompt 1 none, prompt 2 one."""
    data = xr.Dataset(
        {
            "value": ("prompt", [0.0, 1.0, 2.0]), "picture_prompt": ("picture", np.array([0, 0, 2], np.int32)),
            "picture_data": ("picture", np.array(["a", "b", "c"], object)),
        },
        {"picture": range(3)},
    )  # fmt: skip
    for chosen, data_of, prompt_of in (
        ([2, 0], "cab", [0, 1, 1]), (1, "", []), (slice(1, None), "c", [1]), ([0, 0], "abab", [0, 0, 1, 1]),
        (-1, "c", [0]),
    ):  # fmt: skip
        part = Reading(data).isel(prompt=chosen)
        assert "".join(part["picture_data"].values) == data_of and part["picture_prompt"].values.tolist() == prompt_of
        assert part["picture_prompt"].dtype == np.int32
    named = Reading(data.assign_coords(prompt=[10, 20, 30])).sel(prompt=[30, 10])
    assert named["picture_prompt"].values.tolist() == [0, 1, 1]
    assert Reading(data)["picture_prompt"].values.tolist() == [0, 0, 2], "the whole is left as it is"
    assert Reading(data).isel(prompt=[2], picture=[0])["picture_data"].values.tolist() == ["a"]


def test_a_tidy_table_repeats_nothing(readings):
    rng = np.random.default_rng(0)
    jsd, mean = rng.random((2, 2, 3)), rng.random(3)
    table = xr.Dataset(
        {"jsd": (("label", "label_2", "block"), jsd), "jsd_p": (("label", "label_2", "block"), 1 - jsd),
         "mean": ("block", mean), "share": ("expert", [0.5, 0.5]), "documents": 7},
        {"label": ["a", "b"], "label_2": ["a", "b"], "block": [0, 2, 5]},
    )  # fmt: skip
    pairs = tidy(table)  # the dimensions of most variables
    assert list(pairs) == ["label", "label_2", "block", "jsd", "jsd_p"] and len(pairs) == jsd.size
    row = pairs[(pairs.label == "b") & (pairs.label_2 == "a") & (pairs.block == 5)]
    assert row.jsd.item() == jsd[1, 0, 2] and row.jsd_p.item() == 1 - jsd[1, 0, 2]
    for dims in ("block", ["block"]):
        assert tidy(table, dims).values.tolist() == [[b, m] for b, m in zip([0, 2, 5], mean, strict=True)]
    assert tidy(table, ["block", "label", "label_2"]).columns[:3].tolist() == ["block", "label", "label_2"]
    assert tidy(table, ()).to_dict("records") == [{"documents": 7}]
    with pytest.raises(InputError, match=r"over \(label\) alone.*\(block\): 1"):
        tidy(table, "label")
    with pytest.raises(InputError, match="no variables"):
        tidy(table[[]])
    # A reading without places has a table, too; one with places has others beside that of its places.
    assert workbench.Reading(table).frame().equals(pairs)
    tokens = readings[0].frame("vocab")
    assert dict(zip(tokens["vocab"], tokens["vocab_token"], strict=True)) == dict(
        zip(readings[0].data["vocab"].values, readings[0].data["vocab_token"].values, strict=True)
    )


def test_places_of_a_part_count_in_each_prompt(llama, tmp_path):
    ids = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
    whole = workbench.read(llama, ids, LogitLens(top_k=2), progress=False)
    for wanted in (slice(-3, None), slice(None, -1), slice(None, None, -2), slice(0, 2), -1, -3, [-1, 0], [0, -2]):
        part = whole.isel(position=wanted)
        for p, own in enumerate(ids):
            places = list(range(len(own)))  # what Python itself makes of the prompt alone
            if isinstance(wanted, slice):
                places = places[wanted]
            else:
                listed = wanted if isinstance(wanted, list) else [wanted]
                places = [places[w] if -len(own) <= w < len(own) else -1 for w in listed]
            width = part.data.sizes["position"]
            padded = places + [-1] * (width - len(places))
            assert part.data["input_position"].values[p].tolist() == padded, (wanted, p)
            tokens = [own[place] if place >= 0 else -1 for place in padded]
            assert part.data["input_id"].values[p].tolist() == tokens
            assert [bool(x) for x in part.data["input_token"].values[p]] == [t >= 0 for t in tokens]
            for slot, place in enumerate(padded):
                for name in ("entropy", "token_id", "logprob", "target_logprob_null"):
                    mine = part.data[name].values[p, :, slot]
                    theirs = whole.data[name].values[p, :, place]
                    missing = np.full(theirs.shape, -1 if theirs.dtype.kind == "i" else np.nan)
                    np.testing.assert_array_equal(mine, theirs if place >= 0 else missing)
        alone = whole.isel(prompt=1, position=wanted) if wanted != -3 and wanted != [0, -2] else None
        if alone is not None:
            real = part.data["input_id"].values[1] >= 0
            mine = alone.data["input_id"].values[0].tolist()
            assert mine[: real.sum()] == part.data["input_id"].values[1][real].tolist()
        assert part.data["entropy"].dtype == whole.data["entropy"].dtype
        assert part.data["token_id"].dtype == whole.data["token_id"].dtype
        xr.testing.assert_identical(workbench.open(part.save(tmp_path / "part.nc")).data, part.data)
        part.figure(prompt=0)
    assert whole.isel(prompt=1, position=-1).data["input_id"].values.tolist() == [[11]]
    # Where the same places are meant in every prompt they keep their names.
    assert whole.isel(position=[1, 0]).data["position"].values.tolist() == [1, 0]
    assert whole.isel(position=slice(0, 2)).data["position"].values.tolist() == [0, 1]
    assert whole.isel(position=np.array([True, False, False, False, True])).data["input_id"].values.tolist() == [
        [5, 9], [10, -1], [12, -1],
    ]  # fmt: skip
    last = workbench.read(llama, ids, LogitLens(top_k=2), positions="last", progress=False)
    mine = whole.isel(position=-1).data
    np.testing.assert_allclose(mine["logprob"], last.data["logprob"], atol=1e-4)
    for bad in (5, -6, [0, 5], "last", 1.5):
        with pytest.raises(InputError, match="position"):
            whole.isel(position=bad)
    for bad in (-1, slice(-2, None), [0, -1]):
        with pytest.raises(InputError, match=r"Use isel\(position=...\)"):
            whole.sel(position=bad)
    assert whole.sel(position=slice(1, 2)).data["position"].values.tolist() == [1, 2]


def test_any_text_can_be_saved(tmp_path):
    odd = ["a\0b", "\0", "\x1b[0m\x07", "\ufeff", "line\u2028end", ""]
    kept = ["a\u2400b", "\u2400", *odd[2:]]
    data = xr.Dataset(
        {
            "text": ("prompt", np.array(odd, object)), "fixed": ("prompt", np.array(odd)),
            "many": (("prompt", "a", "b"), np.array(odd, object)[:, None, None]),
        },
        {"label": ("prompt", np.array(odd, object)), "kind": odd[:1]}, {"model": "a\0\ud800"},
    )  # fmt: skip
    again = workbench.open(workbench.Reading(data, {"name": "a\0\ud800"}).save(tmp_path / "r.nc"))
    for name in ("text", "label"):
        assert again.data[name].values.tolist() == kept
    assert again.data["fixed"].values.tolist() == ["a\u2400b", "", *kept[2:]]
    assert again.data["kind"].values.tolist() == kept[:1]
    assert again.data["many"].values.ravel().tolist() == kept
    assert again.data.attrs["model"] == "a\u2400?" and again.provenance["name"] == "a\0\ud800"
    assert data["text"].values.tolist() == odd  # what is in memory stays as it was
