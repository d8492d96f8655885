"""Traces on disk: the same as in memory, whole after any interruption, refused when damaged."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import workbench
from probes.routing import RoutingTracer, Trace, from_vllm, store, trace
from workbench.errors import InputError, ReadingError
from workbench.organisms.polyglot import twins

COUNTS = (
    "usage_count",
    "document_count",
    "token_count",
    "document_label_count",
    "idle_count",
    "top_k",
    "expert_exists",
)


@pytest.fixture(scope="module")
def model():
    return twins.planted()


@pytest.fixture(scope="module")
def texts():
    return twins.documents(40, languages=True, tokens=30)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "SHARD_TOKENS", 200)


def tree(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.iterdir()) if not p.name.startswith(".")}


def test_a_trace_counts_what_the_reader_counts(model, texts, tmp_path):
    ids, labels = texts
    kept = trace(model, ids, tmp_path / "t", labels=labels, progress=False)
    whole = workbench.read(model, ids, RoutingTracer(labels, trace=True), progress=False).data
    own = kept.reading().data
    for name in COUNTS:
        np.testing.assert_array_equal(own[name].values, whole[name].values)
    np.testing.assert_allclose(own["usage_weight"].values, whole["usage_weight"].values, rtol=1e-2)
    shards = list(kept.shards())
    assert len(shards) > 3
    index = np.concatenate([s["index"] for s in shards])
    real = whole["input_id"].values >= 0
    np.testing.assert_array_equal(
        index, whole["expert_id"].transpose("prompt", "position", "block", "slot").values[real]
    )
    np.testing.assert_array_equal(np.concatenate([s["token"] for s in shards]), whole["input_id"].values[real])
    # Other labels, without running the model.
    even = ["even" if i % 2 == 0 else "odd" for i in range(40)]
    again = workbench.read(model, ids, RoutingTracer(even), progress=False).data
    np.testing.assert_array_equal(kept.reading(even).data["usage_count"].values, again["usage_count"].values)


KILLED = """
import sys; sys.path[:0] = {path!r}
from workbench.organisms.polyglot import twins
from probes.routing import store, trace
store.SHARD_TOKENS = 200
ids, labels = twins.documents(40, languages=True, tokens=30)
print("ready", flush=True)
trace(twins.planted(), ids, {to!r}, labels=labels, batch_size=1, progress=False)
"""


def test_a_trace_killed_at_any_moment_ends_as_if_it_had_not_been(model, texts, tmp_path):
    ids, labels = texts
    whole = tree(trace(model, ids, tmp_path / "whole", labels=labels, batch_size=1, progress=False).path)
    killed = 0
    for i in range(4):
        to = tmp_path / f"killed-{i}"
        script = KILLED.format(path=[p for p in sys.path if p], to=str(to))
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        # Once some shards are there, and before all are.
        limit = time.monotonic() + 60
        while len(list(to.glob("shard-*"))) < 1 + i and time.monotonic() < limit and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        process.wait()
        killed += len(list(to.glob("shard-*"))) < len(whole) - 1
        trace(model, ids, to, labels=labels, batch_size=1, progress=False)
        assert tree(to) == whole
    assert killed >= 2


def test_an_unfinished_or_damaged_trace_is_refused(model, texts, tmp_path, monkeypatch):
    ids, labels = texts
    path = trace(model, ids, tmp_path / "t", labels=labels, progress=False).path
    file = sorted(path.glob("shard-*"))[1]
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ReadingError, match=f"{file.name} is damaged"):
        Trace(path)
    file.unlink()
    with pytest.raises(ReadingError, match=f"{file.name} is missing"):
        Trace(path)
    with pytest.raises(ReadingError, match="no latent-workbench routing trace"):
        Trace(tmp_path / "nothing")

    def stop(*_):
        raise KeyboardInterrupt

    write = store._write
    calls = []
    monkeypatch.setattr(store, "_write", lambda *a: write(*a) if not calls.append(1) and len(calls) < 3 else stop())
    with pytest.raises(KeyboardInterrupt):
        trace(model, ids, tmp_path / "half", labels=labels, progress=False)
    with pytest.raises(ReadingError, match="not finished"):
        Trace(tmp_path / "half")


def as_version_1(path: Path, kept: int | None = None) -> Path:
    """A trace as version 0.1.0 left it, with its first shards."""
    manifest = json.loads((path / "manifest.json").read_text())
    names = sorted(manifest["files"])[:kept]
    for name in manifest["files"].keys() - names:
        (path / name).unlink()
    shards = {name: hashlib.blake2b((path / name).read_bytes(), digest_size=8).hexdigest() for name in names}
    old = {"format": manifest["format"], "version": 1, **manifest["head"], **manifest["extra"], "shards": shards}
    (path / "trace.json").write_text(json.dumps(old))
    (path / "manifest.json").unlink()
    return path


def test_a_trace_of_version_1_is_read_and_known_again(model, texts, tmp_path):
    ids, labels = texts
    new = trace(model, ids, tmp_path / "t", labels=labels, progress=False).reading().data
    path = as_version_1(tmp_path / "t")
    assert Trace(path).reading().data.identical(new)
    before = tree(path)
    assert trace(model, ids, path, labels=labels, progress=False).reading().data.identical(new)
    assert tree(path) == before
    raw = bytearray((path / "shard-00001.safetensors").read_bytes())
    raw[-3] ^= 1
    (path / "shard-00001.safetensors").write_bytes(raw)
    with pytest.raises(ReadingError, match="shard-00001.safetensors is damaged"):
        Trace(path)
    trace(model, ids, tmp_path / "half", labels=labels, progress=False)
    half = as_version_1(tmp_path / "half", 2)
    with pytest.raises(ReadingError, match="not finished"):
        Trace(half)
    with pytest.raises(InputError, match="begun in version 1"):
        trace(model, ids, half, labels=labels, progress=False)


def test_a_folder_with_another_trace_is_not_touched(model, texts, tmp_path):
    ids, labels = texts
    path = trace(model, ids, tmp_path / "t", labels=labels, progress=False).path
    before = tree(path)
    with pytest.raises(InputError, match="digest there is|documents there is"):
        trace(model, ids[:-1] + [ids[0]], path, labels=labels, progress=False)
    with pytest.raises(InputError, match="model there is|fingerprint there is"):
        trace(twins.null(), ids, path, labels=labels, progress=False)
    assert tree(path) == before
    for wrong, says in ((labels[:3], "labels has 3"), ("ab" * 20, "one text"), ([["x"] * 30] * 40, "is a list")):
        with pytest.raises(InputError, match=says):
            trace(model, ids, tmp_path / "u", labels=wrong, progress=False)
        with pytest.raises(InputError, match=says):
            Trace(path).reading(wrong)


def test_measures_of_documents_take_a_trace(model, texts, tmp_path):
    from probes.routing import measures

    ids, labels = texts
    kept = trace(model, ids, tmp_path / "t", labels=labels, progress=False)
    counts = kept.reading()
    for name in ("usage", "divergence", "information", "specialisation", "agreement", "classes", "select"):
        a, b = (getattr(measures, name)(x, draws=9) for x in (kept, counts))
        assert a.data.equals(b.data) and len(a.data.data_vars)
    for name, says in (("gate", "no gate probabilities"), ("context", "gate probabilities")):
        with pytest.raises(InputError, match=says):
            getattr(measures, name)(kept)


def test_a_trace_from_vllm_is_counted(model, texts):
    ids, labels = texts
    whole = workbench.read(model, ids, RoutingTracer(labels, trace=True), progress=False).data
    routed = [whole["expert_id"].values[i, :, : len(x)].swapaxes(0, 1) for i, x in enumerate(ids)]
    own = from_vllm(routed, n_experts=twins.EXPERTS, labels=labels).data
    for name in ("usage_count", "document_count", "token_count"):
        np.testing.assert_array_equal(own[name].values, whole[name].values)
    from probes.routing import measures
    from workbench.reading import Reading

    assert (measures.divergence(Reading(own), draws=59)["mean_jsd_p"].values[1]) < 0.05
    # Experts are all that is there: co-activation has its intervals, and of weights and ids nothing is said.
    pairs = measures.coactivation(Reading(own), draws=20)
    np.testing.assert_allclose(pairs["given"], measures.coactivation(Reading(whole))["given"])
    assert "document_weight" not in own and not np.isnan(pairs["given_low"].values[0]).all()
    for measure, says in (
        (lambda x: measures.divergence(x, of="weight"), "has no weights"), (measures.flow, "no weights"),
        (measures.gate, "no gate probabilities"), (measures.vocabulary, "no token ids"),
        (measures.consistency, "no token ids"), (measures.context, "gate probabilities"),
        (lambda x: measures.saturation([x, x]), "trace=True"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            measure(Reading(own))
    for wrong, says in (
        ([], "routed is empty"), ([routed[0].astype(float)], "are integers"), ([routed[0] * 0 - 5], "names expert -5"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            from_vllm(wrong, n_experts=8)
    with pytest.raises(InputError, match="labels has one text"):
        from_vllm(routed[:2], n_experts=8, labels="ab")
    with pytest.raises(InputError, match="names expert 7 and there are 4"):
        from_vllm(routed, n_experts=4)
    with pytest.raises(InputError, match="Document 1 has shape"):
        from_vllm([routed[0], routed[1][:, :1]], n_experts=8)
