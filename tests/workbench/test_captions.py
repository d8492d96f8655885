"""Captions say what the reading says, once, in LaTeX."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("plotly")
sys.path.insert(0, str(Path(__file__).parent))

import gallery

from workbench.errors import InputError
from workbench.figures import Figure, Panel, Plot, paper
from workbench.reading import Reading


def test_captions_say_what_the_reading_says():
    told = (
        r"Log-prob of target after \textless{}b\textgreater{} (\#3), prompt 0 of 3. Model: \texttt{made-up\_7B} "
        r"(fingerprint \texttt{0f1e2d3c4b5a6978}, bfloat16). Reader: LogitLens (at resid, top k 5, precision fp32). "
        "Data: 3 prompts. Null: median log-probability of target under the states of other positions."
    )
    figure, dated = gallery.lens().figure("trajectory", position=3), " Read on 2026-01-02 with latent-workbench 0.1.0."
    assert figure.caption() == told and figure.caption(date=True) == told + dated
    bare = gallery.attributed().figure().caption()
    assert "names no null and no interval of what is shown" in bare and "Null" not in bare
    part = Reading(gallery.lens().data, {**gallery.ORIGIN, "prompts_read": 2}).figure().caption()
    assert "Data: 2 of 3 prompts." in part
    with pytest.raises(InputError, match=r"does not know what it is of.*figure.caption\(reading\)"):
        Figure(Plot([Panel([])])).caption()


def test_captions_of_panels_say_once_what_is_common():
    lens, near, own = gallery.lens(), gallery.near(), "target_logprob"
    sheet = paper("icml").grid([[lens.figure("curves", value=own), lens.figure("heatmap", prompt=2, value=own)]])
    text = sheet.caption()
    assert text.startswith(
        r"\textbf{(a)} Mean over positions, points: each of 3 prompts, dotted: null. \textbf{(b)} Log-prob"
    )
    assert text.count("Model:") == text.count("Null:") == 1 and "Read on" not in text
    assert sheet.caption(date=True) == text + " Read on 2026-01-02 with latent-workbench 0.1.0."
    mixed = paper("icml").grid([[lens.figure("curves"), near.figure()]]).caption()
    assert mixed.count("Reader:") == 2 and mixed.count("fingerprint") == 1


def test_captions_are_safe_in_latex(tmp_path):
    hostile = r"50% of $x$ & #1_{a}^{b} ~ \textbf <s> | `q' -- 日 é … ★"
    text = Figure(Plot([Panel([])], hostile), of=gallery.lens()).caption()
    for char in "%$&#_^~":
        assert not re.search(rf"(?<!\\){re.escape(char)}", re.sub(r"\\\(.*?\\\)", "", text)), char
    depth = np.cumsum([(c == "{") - (c == "}") for c in re.sub(r"\\[{}]", "", text)])
    assert depth.min() >= 0 and depth[-1] == 0
    assert "--" not in text and r"\texttt{U+65E5}" in text and "é" in text
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex; the escapes were checked, the typesetting was not")
    source = "\\documentclass{article}\\usepackage[T1]{fontenc}\\begin{document}" + text + "\\end{document}"
    (tmp_path / "x.tex").write_text(source, "utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and "Missing character" not in run.stdout, run.stdout[-2000:]
