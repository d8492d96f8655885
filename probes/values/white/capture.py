"""``WhiteBox``: an instrument that looks inside while it asks, and keeps numbers instead of states."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

import workbench
from probes.values.answers import Asker, Pieces, Seam, Turn, answer_pieces
from probes.values.framings import OFFERED, Framing, letter_framings, scale_framings
from probes.values.units import Units
from probes.values.white.groups import Groups
from probes.values.white.measured import VARIABLES, axes, measured
from workbench.errors import InputError, ReadingError
from workbench.files import atomic_write
from workbench.inputs import in_head
from workbench.readers import Found, Layers, Output, Plan, Reader, Rows, Run
from workbench.reading import Reading
from workbench.readout import Readout
from workbench.sites import Site, resolve
from workbench.variables import about, described

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    

INSIDE = {
    "margin": about("log-odds of support against opposition under the logit lens", "nats"),
    "p": about("probability of the stance at the last layer"),
    "states": about("state where the answer begins, mean over an item's prompts", "stream units"),
    "stance": about("stance", role="label"),
}


@dataclass(frozen=True, eq=False)
class AnswerStates(Reader):
    """A reader: where an answer would begin, the states of every layer and what the logit lens makes of the answers.

    Args:
        rows: [prompt] number of the item that it asks.
        answers: [prompt] stance -> ids of the tokens that give it.
        layers: of the residual stream; None: all.  The last is always read.

    The reading's variables:
        margin [prompt, layer]: log of the lens's odds, p(support) : p(oppose), in nats.  With one token a stance it is
            logit(support) - logit(oppose).
        p [prompt, stance]: probabilities of support, neutral, oppose at the last layer, the model's own.
        states [item, layer, width]: float32, means over an item's prompts.
    """

    rows: Sequence[int]
    answers: Sequence[Mapping[str, Sequence[int]]]
    layers: Layers = None

    def plan(self, run: Run) -> Plan:
        rows, answers = np.array(self.rows), self.answers
        size = max(sum(map(len, own.values())) for own in answers)
        ids, side = np.zeros((len(answers), size), np.int64), np.full((len(answers), size), -1)
        for p, own in enumerate(answers):
            pairs = [(token, k) for k, stance in enumerate(OFFERED) for token in own.get(stance, ())]
            for j, (token, k) in enumerate(pairs):
                ids[p, j], side[p, j] = token, k
        last = Site("resid", run.model.n_layers)
        wanted = sorted({*resolve(run.model, "resid", self.layers), last})
        readout = Readout(run.model)
        for token in np.unique(ids).tolist():
            in_head(run.model, token, "An answer's token")

        def observe(states: Rows, batch: Batch) -> dict[str, Any]:
            p = batch.prompt.numpy()
            own = torch.from_numpy(side[p])
            margins = []
            for site in wanted:
                features = readout.features(states[site])
                logit = readout.logits_at(features, torch.from_numpy(ids[p]).to(features.device)).double().cpu()
                each = [logit.masked_fill(own != k, -torch.inf).logsumexp(-1) for k in range(len(OFFERED))]
                said = torch.stack(each, -1)
                margins.append(said[:, 0] - said[:, 2])
            total = readout.read(features[None], 1).logsumexp[0].double().cpu()  # of the last site
            kept = torch.stack([states[site].float() for site in wanted], 1)
            return {
                "margin": torch.stack(margins, 1), "p": (said - total[:, None]).exp(),
                "states": (rows[p], kept),
            }  # fmt: skip

        outputs = {
            "margin": Output(("prompt", "layer"), dtype=np.float64),
            "p": Output(("prompt", "stance"), dtype=np.float64),
            "states": Output(("item", "layer", "width"), combine="sum"),
        }

        def finish(found: Found) -> dict[str, Any]:
            times = np.bincount(rows, minlength=len(found["states"]))
            states = found["states"] / times[:, None, None].astype(np.float32)
            return {"states": (outputs["states"].dims, states)}

        coords = {
            "layer": [site.index for site in wanted], "stance": list(OFFERED), "item": int(rows.max()) + 1,
            "width": run.model.d_model,
        }  # fmt: skip
        settings = {"rows": None, "answers": None}
        return Plan(wanted, outputs, observe, coords, finish, INSIDE, {}, settings, tokens=False)


class WhiteBox(Asker):
    """What goes on inside, on the same items and checkpoints as stances: states, directions, stance margins.

        tracker = ValueTracker(folder, items, [Pmf(), WhiteBox()]).run(checkpoints)
        inside = tracker.table("whitebox")         for the functions of probes.values.white

    Items are asked in every framing, in one pass, and looked at where the answer begins: the last token of the prompt.
    The state of an item is the mean over its framings, over which the letter or number that is about to be said cancels
    where labels are permuted.  States are compared with those of the *baseline*, the first checkpoint that is read:
    its states are kept in one file, every other checkpoint's are dropped once the numbers are made.

    Args:
        framings: ways to ask, of which each answer is one token; None: letters in three orders, 1 to 7 and back.
        layers: of the residual stream; None: all.  The last is always read.
        labels: item id -> +1, -1 or 0, the two sets of items between which stance directions run; None: polarities.
            Polarity goes on to say with which sign an item's projection counts (labels of contrasting prompts, and
            polarity +1 throughout, give the shift of Chen et al. 2025, arXiv 2507.21509).
        draws: of nulls and bootstraps; seed: of these.
        baseline: the file of the baseline's states, written where it is not there; None: in the tracker's folder, or
            in memory where there is no tracker.
        chat, lead: as in :class:`~probes.values.instruments.Pmf`.

    ``read`` gives p and mass [item, framing(, stance)], which are Pmf's (so it is an instrument like the others);
    margin [item, framing, layer], the log-odds of support against opposition under the logit lens, in nats; label
    [item]; baseline and fingerprint, of weights; and the variables of :func:`probes.values.white.measured.measured`.

    Raises InputError for answers of several tokens, and where the baseline's states are of other items or of a model of
    another shape.
    """

    name = "whitebox"
    variables = {
        **VARIABLES,
        "margin": about("log-odds of support against opposition under the logit lens", "nats"),
        "label": about("label of the item", role="label"),
        "baseline": about("fingerprint of the baseline's weights", role="label"),
        "fingerprint": about("fingerprint of the weights", role="label"),
    }
    apart = False
    """Directions and nulls are of all items together."""

    def __init__(
        self,
        framings: Iterable[Framing] | None = None,
        layers: int | Iterable[int] | None = None,
        *,
        labels: Mapping[str, int] | None = None,
        draws: int = 500,
        seed: int = 0,
        baseline: str | Path | None = None,
        chat: bool | None = None,
        lead: str | None = None,
    ) -> None:
        super().__init__(chat, lead)
        self.framings = (*letter_framings(), *scale_framings()) if framings is None else tuple(framings)
        self.layers = layers if layers is None or isinstance(layers, int) else list(layers)
        names = [framing.name for framing in self.framings]
        if not names or len(set(names)) < len(names):
            raise InputError(f"The framings are called {names}. Give at least one, and each its own name.")
        odd = {x for x in (labels or {}).values() if x not in (1, -1, 0)}
        if odd:
            raise InputError(f"Labels are +1, -1, or 0 for items of neither set, and there is {odd.pop()!r}.")
        if draws < 1:
            raise InputError(f"draws is {draws}. Nulls and intervals are made of draws: give a few hundred.")
        self.labels, self.draws, self.seed = None if labels is None else dict(labels), draws, seed
        self._named, self._file = baseline is not None, None if baseline is None else Path(baseline)
        self._base: xr.Dataset | None = None

    @property
    def config(self) -> dict[str, Any]:
        framings = [asdict(framing) for framing in self.framings]
        labels = None if self.labels is None else sorted(self.labels.items())
        own = {"framings": framings, "layers": self.layers, "labels": labels, "draws": self.draws, "seed": self.seed}
        return {**own, **super().config}

    def keep_in(self, folder: Path) -> None:
        """Where the baseline's states are kept, unless a file was named.  Another folder is another series."""
        file = folder / f"baseline-{self.settings[:8]}.nc"
        if not self._named and self._file != file:
            self._file, self._base = file, None

    def read(
        self, model: Any, items: Iterable[Any], *, batch_size: int | None = None, seed: int = 0, progress: bool = True
    ) -> Reading:
        """Ask every item in every framing.  ``seed`` is taken for the other instruments' sake."""
        items, turn = self.opened(model, items)
        model = turn.model
        groups = self._groups(items)
        asked, answers, places = self._asked(turn, items)
        reader = AnswerStates([i for i, _ in places], answers, self.layers)
        reading = workbench.read(model, asked, reader, positions="last", batch_size=batch_size, progress=progress)
        found = reading.data
        base = self._baseline(model, items, found["states"])
        shape, layers = (len(items), len(self.framings)), found["layer"].values
        p, margin = np.full((*shape, 4), np.nan), np.full((*shape, len(layers)), np.nan)
        for k, (i, f) in enumerate(places):
            own = found["p"].values[k]
            p[i, f, :3] = own / max(1.0, own.sum())  # rounding of the normaliser
            p[i, f, 3] = max(0.0, 1 - p[i, f, :3].sum())
            margin[i, f] = found["margin"].values[k]
        kept = measured(found["states"].values, base["states"].values, groups, draws=self.draws, seed=self.seed)
        more = {
            "margin": (("item", "framing", "layer"), margin), "label": (("item",), groups.label[groups.group]),
            "baseline": ((), base.attrs["fingerprint"]), "fingerprint": ((), model.fingerprint), **kept,
        }  # fmt: skip
        table = self.stances(items, p, "framing", [x.name for x in self.framings], more, turn, reading)
        return Reading(
            described(table.data.assign_coords(layer=layers, **axes(groups)), self.variables), table.provenance
        )

    # ---------------------------------------------------------------- inside

    def _groups(self, items: Sequence[Any]) -> Groups:
        key = np.array([int(item.polarity) for item in items])
        label = key
        if self.labels is not None:
            alone = set(self.labels) - {str(item.item_id) for item in items}
            if alone:
                raise InputError(f"There is a label for {sorted(alone)[0]!r}, and no item has this id.")
            label = np.array([int(self.labels.get(str(item.item_id), 0)) for item in items])
        clusters = [str(item.cluster or item.item_id) for item in items]
        return Groups(Units([item.topic for item in items], clusters), label, key)

    def _asked(
        self, turn: Turn, items: Sequence[Any]
    ) -> tuple[list[list[int]], list[dict[str, list[int]]], list[tuple[int, int]]]:
        """Prompts, the tokens of each prompt's answers by stance, and which item and framing it is."""
        asked, answers, places = [], [], []
        for f, framing in enumerate(self.framings):
            some = [i for i, item in enumerate(items) if not framing.negated or getattr(item, "negated", "")]
            if not some:
                continue
            shown = [framing.shown(items[i]) for i in some]
            seam, pieces = self._pieces(turn, framing, shown[0])
            tokens: dict[str, list[int]] = {}
            for stance, own in zip(framing.meanings, pieces, strict=True):
                tokens.setdefault(stance, []).extend(x[0] for x in own)
            if not {"support", "oppose"} <= set(tokens):
                raise InputError(
                    f"Framing {framing.name!r} offers no answer that {'opposes' if 'support' in tokens else 'supports'}"
                    ", and a margin is between the two. Leave it out."
                )
            for i, question in zip(some, shown, strict=True):
                asked.append(turn.prompt(question, seam))
                answers.append(tokens)
                places.append((i, f))
        silent = set(range(len(items))) - {i for i, _ in places}
        if silent:
            raise InputError(
                f"No framing asks item {items[min(silent)].item_id}: all ask negations, and it has none. Add a framing "
                "that is not negated."
            )
        return asked, answers, places

    def _pieces(self, turn: Turn, framing: Framing, question: str) -> tuple[Seam, Pieces]:
        try:
            return answer_pieces(turn, framing.answers, "first" if framing.tokens == "first" else "single", question)
        except InputError as error:
            raise InputError(
                f"Framing {framing.name!r} cannot be read inside {turn.model.name}: a lens reads the next token at "
                f"every layer, so each answer must be one. {error} For WhiteBox give other framings "
                "(probes.values.framings.letter_framings(), say)."
            ) from error

    def _baseline(self, model: Model, items: Sequence[Any], states: xr.DataArray) -> xr.Dataset:
        """The baseline's states; these, if there are none yet."""
        rows = [[str(i.item_id), i.text] for i in items]
        digest = hashlib.blake2b(json.dumps(rows, ensure_ascii=False).encode(), digest_size=8).hexdigest()
        base = self._base
        if base is None and self._file is not None and self._file.exists():
            try:
                with xr.open_dataset(self._file, engine="h5netcdf") as file:
                    base = file.load()
            except Exception as error:
                raise ReadingError(
                    f"The baseline's states in {self._file} cannot be opened ({type(error).__name__}: {error}). "
                    "Without them nothing can be compared: take the file from a copy, or read the series into another "
                    "folder."
                ) from error
        if base is None:
            attrs = {"fingerprint": model.fingerprint, "items": digest, "settings": self.settings}
            base = xr.Dataset({"states": states}, attrs=attrs)
            if self._file is not None:
                atomic_write(self._file, lambda name: base.to_netcdf(name, engine="h5netcdf"))
        if base.attrs.get("items") != digest or base.attrs.get("settings") != self.settings:
            where = f" in {self._file}" if self._file else ""
            raise InputError(
                f"The baseline's states{where} are of other items, or were read with other settings. Use another "
                "folder, or another WhiteBox."
            )
        if base["states"].shape != states.shape:
            raise InputError(
                f"The baseline's states are {tuple(base['states'].shape)} [item, layer, width] and those of "
                f"{model.name} {tuple(states.shape)}: it is a model of another shape, and not of this series."
            )
        self._base = base
        return base
