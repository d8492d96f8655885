"""Packages that add to the workbench: a broken one is left out and reported, a name taken twice is an error."""

import subprocess
import sys
import warnings

import pytest

from workbench import cli, plugins
from workbench.errors import PluginError

GOOD = "import xarray\nVALUE = 7\ndef register(commands, style):\n    commands.add_parser('wave', help='a wave')\n"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a made-up distribution on the path: its entry points as text, its one module's source."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_reported", set())

    def add(name, points, source=GOOD, version="0.1"):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(points)
        (tmp_path / f"made_up_{name}.py").write_text(source)
        return tmp_path

    yield add
    for name in [name for name in sys.modules if name.startswith("made_up_")]:
        del sys.modules[name]


def test_a_plugin_is_found(install):
    install("one", "[workbench.measures]\nsize = made_up_one:VALUE\n")
    assert plugins.load("measures", "size") == 7 and dict(plugins.loaded("measures"))["size"] == 7
    with pytest.raises(PluginError, match="No package adds 'length' to workbench.measures. Installed: .*size"):
        plugins.load("measures", "length")


@pytest.mark.parametrize("source, said", [
    ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ("1 / 0", "ZeroDivisionError: division by zero"),
    ("", "AttributeError: .* has no attribute 'VALUE'"),
    ("def f(:", "SyntaxError: "),
])  # fmt: skip
def test_a_broken_plugin_is_reported_once_and_left_out(install, source, said):
    install("bad", "[workbench.measures]\nsize = made_up_bad:VALUE\n", source, "3.2")
    install("good", "[workbench.measures]\nlength = made_up_good:VALUE\n")
    with pytest.warns(RuntimeWarning, match=rf"'size' of workbench.measures .*bad 3\.2 adds.* be imported: {said}"):
        found = dict(plugins.loaded("measures"))
    assert found["length"] == 7 and "size" not in found
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "size" not in dict(plugins.loaded("measures"))
    with pytest.raises(PluginError, match=said):
        plugins.load("measures", "size")


def test_a_name_taken_twice_is_an_error_that_names_both(install):
    install("one", "[workbench.measures]\nsize = made_up_one:VALUE\n")
    install("two", "[workbench.measures]\nsize = made_up_two:VALUE\n", version="2.0")
    for ask in (lambda: plugins.points("measures"), lambda: list(plugins.loaded("measures"))):
        with pytest.raises(PluginError, match="'size' of workbench.measures is taken twice") as error:
            ask()
        assert "one 0.1 (made_up_one:VALUE)" in str(error.value) and "two 2.0 (made_up_two:VALUE)" in str(error.value)


@pytest.mark.parametrize("group, name", [
    ("readers", "logit"), ("commands", "read"), ("charts", "heatmap"), ("explorers", "lens"), ("explorers", "drift"),
])  # fmt: skip
def test_ours_cannot_be_taken(install, capsys, group, name):
    from workbench.figures.charts import charts
    from workbench.widgets.dispatch import views

    install("thief", f"[workbench.{group}]\n{name} = made_up_thief:VALUE\n")
    ask = {"readers": plugins.readers, "commands": cli._parser, "charts": charts, "explorers": views}[group]
    with pytest.raises(PluginError, match=f"{name!r} of workbench.{group} is taken twice") as error:
        ask()
    assert "thief 0.1 (made_up_thief:VALUE)" in str(error.value) and "latent-workbench" in str(error.value)
    if group == "commands":
        assert cli.main(["--help"]) == 1 and "taken twice" in capsys.readouterr().err


def test_an_explorer_that_does_not_say_what_it_needs_is_asked(install):
    import xarray as xr

    from workbench.widgets.dispatch import fitting

    made = "from workbench.widgets import View\nVIEW = View('Mine', '', None, ('norm',), dict, str)"
    install("silent", "[workbench.explorers]\nsilent = made_up_silent:VIEW\n", made)
    install("open", "[workbench.explorers]\nopen = made_up_open:VIEW [norm]\n", "import nowhere_at_all")
    assert sorted(fitting(xr.Dataset({"norm": 1.0}))) == ["open", "silent"]
    assert fitting(xr.Dataset({"mean": 1.0})) == []


def test_the_command_line_outlives_a_broken_command(install):
    folder = install("bad", "[workbench.commands]\nsink = made_up_bad:register\n", "import nowhere_at_all")
    install("good", "[workbench.commands]\nwave = made_up_good:register\n")
    source = f"import sys; sys.path.insert(0, {str(folder)!r}); from workbench.cli import main; main(['--help'])"
    out = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert out.returncode == 0 and "wave" in out.stdout and "index" in out.stdout
    assert "nowhere_at_all" in out.stderr and "bad 0.1" in out.stderr and "Traceback" not in out.stderr
