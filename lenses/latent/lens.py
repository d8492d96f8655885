"""LatentLens: the contexts whose states lie nearest to a state, over all layers of an index (arXiv 2602.00462)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lenses import nulls
from lenses.latent.build import tell_of_beginnings
from lenses.latent.index import ContextIndex
from lenses.latent.search import CALIBRATIONS, Found
from lenses.latent.search import VARIABLES as NEIGHBOURS
from workbench.errors import InputError
from workbench.readers import Found as Outputs
from workbench.readers import Layers, Output, Plan, Reader, Rows, Run
from workbench.sites import Site, resolve
from workbench.stats import Design, over
from workbench.variables import about

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.reading import Reading

AT_ONCE = 4096
"""States that wait before the index is read for all of them together."""
RANDOM = 100
"""States of random tokens that are searched at each layer."""
SHARES = {"text": "index_layer_share", "image": "index_layer_share_image"}
VARIABLES = {
    **NEIGHBOURS,
    "similarity_floor_random": about(
        "95th percentile of the best similarity of random tokens", role="floor", of="similarity",
        short_name="random tokens",
    ),
    **nulls.variables("similarity", "context"),
    "index_layer_share": about("share of the neighbours from an index layer", short_name="share"),
    "index_layer_share_low": about("95 % interval over prompts", role="low", of="index_layer_share"),
    "index_layer_share_high": about("95 % interval over prompts", role="high", of="index_layer_share"),
    "index_layer_share_null": about(
        "share of the neighbours of random tokens", role="null", of="index_layer_share", short_name="random tokens"
    ),
    "index_layer_share_image": about(
        "share of the neighbours of visual tokens from an index layer", short_name="share, pictures", kind="image"
    ),
    "index_layer_share_image_low": about("95 % interval over prompts", role="low", of="index_layer_share_image"),
    "index_layer_share_image_high": about("95 % interval over prompts", role="high", of="index_layer_share_image"),
    "index_layer_share_image_null": about(
        "share of the neighbours of visual tokens in pictures of noise", role="null", of="index_layer_share_image",
        short_name="pictures of noise",
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class LatentLens(Reader):
    """Nearest contexts of every state, found in the same pass as any other lens.

    Args:
        index: a :class:`ContextIndex` or the folder of one.  It must have been built with the model that is read.
        layers: layers of the model to read (or blocks, with another ``at``); None: all.
        top_k: how many contexts to keep.
        index_layers: layers of the index to look in; None: all of them together, as in the paper.
        calibration: "none", "centre", "z-score" or "csls" (:mod:`lenses.latent.search`).
        distinct: a context counts once, in the index layer where it is nearest.
        method: "exact" or "approximate".
        at: "resid", "resid_mid", "attn_out" or "mlp_out".
        floors: compute floors and p-values (two further passes over as many tokens, or 1024).
        draws: null states at each depth; None: three for each place that is read, from 512 to 4096, as far as the
            further pass gives them.  With more, p can be smaller.
        foreign: read a model with an index that another one built.
        without: numbers of rows that are never found.
        self_matches: also find contexts whose sentence begins with the very tokens of the prompt, up to the position
            that is read (in a model that looks ahead: whose sentence is the prompt).  Their states are equal to the
            prompt's by construction and say nothing, so that they are left out by default; the attribute
            ``self_matches_left_out`` counts the positions that have any.

    The reading's variables, [prompt, layer, position, rank]:
        similarity, index_layer, token_id, token, next_token_id, next_token, sentence, token_position, word,
        char_start, char_end, context: as :meth:`ContextIndex.search` gives them
    and their controls:
        similarity_floor_shuffled  [layer]: the 95th percentile of the best similarity of states of these prompts with
                                   their tokens in random order, at the positions that are read.  A neighbour below it
                                   says no more than a context without order would.
        similarity_p               [prompt, layer, position]: rank p-value of the best neighbour among the same states,
                                   less what its token reaches in any context (:func:`lenses.nulls.tested`)
        similarity_q               the same over all cells of the reading (Benjamini-Hochberg)
        similarity_floor_random    [layer]: as the other floor, of prompts of random tokens (as frequent as in the
                                   index's corpus)
        sink                       [prompt, layer, position]: attention sinks (:mod:`workbench.sinks`).  They, special
                                   tokens and visual tokens that show nothing are in no null and have no p; floors and
                                   p are NaN where fewer than 20 null states are left (attribute ``reason``).
        index_layer_share          [layer, index]: how often neighbours of text come from each index layer; _low and
                                   _high are the 95 % interval over prompts (:meth:`workbench.stats.Design.bootstrap`;
                                   NaN with fewer than two prompts).  Sinks are left out.
        index_layer_share_null     [layer, index]: the same for the states of random tokens: what the index alone
                                   prefers.
    Where pictures are read their tokens have controls of their own, and those above are of text alone:
        similarity_floor_patches   [layer]: as similarity_floor_shuffled, of the pictures with their cells in random
                                   order; similarity_p and similarity_q of visual tokens are ranks among these states
        similarity_floor_noise     [layer]: of pictures of coloured noise
        similarity_floor_others    [layer]: of other prompts' pictures in the places of these; NaN with one picture
        index_layer_share_image    [layer, index], _low, _high: the shares of the neighbours of visual tokens; with
                                   model layers as rows and index layers as columns it is the table of layer alignment
                                   (the "mid-layer leap")
        index_layer_share_image_null   [layer, index]: the same in pictures of noise

    Raises ReadingError when the index is damaged, IndexRefused when it was built with another model.
    """

    question = "In which other contexts does the model have nearly the same state?"

    index: ContextIndex | str | os.PathLike[str]
    layers: Layers = None
    top_k: int = 5
    _: KW_ONLY
    index_layers: Layers = None
    calibration: str = "none"
    distinct: bool = True
    method: str = "exact"
    at: str = "resid"
    floors: bool = True
    draws: int | None = None
    foreign: bool = False
    without: Iterable[int] | None = None
    self_matches: bool = False

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise InputError(f"top_k={self.top_k} keeps no neighbour. Use 1 or more.")
        if self.calibration not in CALIBRATIONS:
            raise InputError(f"calibration={self.calibration!r} is unknown. Use one of {', '.join(CALIBRATIONS)}.")
        nulls.checked(self.draws)
        if not isinstance(self.index, ContextIndex):
            object.__setattr__(self, "index", ContextIndex.open(self.index))
        if self.without is not None:
            object.__setattr__(self, "without", np.unique(np.fromiter(self.without, np.int64)))

    @classmethod
    def demo(cls, model: Model, folder: Any) -> LatentLens:
        """The lens over a small index of made-up stories, built in ``folder`` (an index that is there is replaced)."""
        from workbench.organisms.story.grammar import stories

        small = sum(p.numel() for p in model.module.parameters()) < 5e6
        texts = [story.text for story in stories(1500 if small else 150, 5)]
        if (folder / "manifest.json").exists():
            shutil.rmtree(folder)
        return cls(ContextIndex.build(model, texts, folder))

    def plan(self, run: Run) -> Plan:
        index: Any = self.index
        index.check(run.model, foreign=self.foreign)
        tell_of_beginnings(index.manifest, run)
        wanted, search = resolve(run.model, self.at, self.layers), _Search(self, run)
        axis = "layer" if self.at == "resid" else "block"
        cells = ("prompt", axis, "position")
        ranks, prompts = (*cells, "rank"), [prompt.ids for prompt in run.prompts]

        def observe(states: Rows, batch: Batch) -> dict[str, Any]:
            rows = torch.cat([states[site].float() for site in wanted])
            prompt, position = np.tile(batch.prompt, len(wanted)), np.tile(batch.position, len(wanted))
            found, matched = search(rows, prompts, prompt, position)
            shape = (len(wanted), len(batch))
            return {
                "similarity": found.similarity.reshape(*shape, -1).swapaxes(0, 1),
                "index_layer": found.layer.reshape(*shape, -1).swapaxes(0, 1),
                "context": found.row.reshape(*shape, -1).swapaxes(0, 1),
                "matched": matched.reshape(shape).any(0),
            }

        def finish(found: Outputs) -> dict[str, Any]:
            variables = {name: (ranks, values) for name, values in index.describe(found["context"]).items()}
            for kind, name in SHARES.items():
                if kind == "image" and not nulls.pictured(run):
                    continue
                own = np.where(nulls.cells(run, wanted)[kind][..., None], found["index_layer"], -1)
                for end, values, said in self._share_interval(own):
                    variables[f"{name}{end}"] = ((axis, "index"), values.astype(np.float32), said)
            if self.floors and found["similarity"].size:
                variables |= self._controls(run, wanted, search, found["similarity"][..., 0])
            return variables

        made = index.manifest
        settings = {
            "layers": None, "chunk": None, "top_k": self.top_k, "index_layers": self._looked_in(),
            "index": {k: made[k] for k in ("contexts", "n_rows", "corpus", "settings", "storage")}
            | {"model": {k: v for k, v in made["model"].items() if k != "source"}},
            **nulls.settings(run),
            "floor": f"{nulls.SETTINGS['floor']}; floor_random: of at most {RANDOM} states of random tokens",
            "self_matches": "left out" if search.barring else "found",
            "without": 0 if self.without is None else len(self.without),  # type: ignore[arg-type]
        }  # fmt: skip
        if self.method == "approximate" and "approximate" in made:  # else the search says what is missing
            settings["recall_at_10"] = made["approximate"]["recall_at_10"]
        outputs = {
            "similarity": Output(ranks), "index_layer": Output(ranks, dtype=np.int32),
            "context": Output(ranks, dtype=np.int64),
            "matched": Output(("prompt", "position"), dtype=bool, fill=False),
        }  # fmt: skip
        coords = {axis: [s.index for s in wanted], "rank": self.top_k, "index": np.array(self._looked_in())}
        return Plan(
            wanted, outputs, observe, coords, finish, nulls.of_kinds(VARIABLES, run), {"at": self.at}, settings,
            gather=-(-AT_ONCE // max(1, len(wanted))),
        )  # fmt: skip

    def reading(self, run: Run, plan: Plan, found: Outputs, origin: Any) -> Reading:
        reading, index = super().reading(run, plan, found, origin), self.index
        reading.data.attrs["self_matches_left_out"] = int(found["matched"].sum())
        # The ids are those of the index's tokenizer, which with foreign=True need not be the model's.
        texts = reading.data["vocab_token"]
        reading.data["vocab_token"] = texts.copy(data=index.token_texts(reading.data["vocab"].values))  # type: ignore
        return reading

    # ---------------------------------------------------------------- controls

    def _drawn(self, model: Model) -> Any:
        """A draw of token ids, as frequent as in the index's corpus."""
        index: Any = self.index
        table = index.store.tokens
        known = model.module.get_input_embeddings().num_embeddings
        good = ~np.isin(table["token_id"], index.manifest["special_ids"]) & (table["token_id"] < known)
        weight = np.where(good, table["occurrences"], 0).astype(float)
        return lambda rng, n: rng.choice(table["token_id"], n, p=weight / weight.sum())

    def _controls(self, run: Run, wanted: list[Site], search: _Search, best: np.ndarray) -> dict[str, Any]:
        axis = wanted[0].axis
        shuffled = nulls.null_states(run, wanted, self.draws)
        random = nulls.null_states(run, wanted, RANDOM, draw=self._drawn(run.model), seed=1)
        known = {"shuffled": shuffled, **nulls.picture_nulls(run, wanted, self.draws)}
        found = {name: (null, *search.scores(null)) for name, null in known.items()}
        lowest, layers = search.scores(random)
        of_nothing = {"text": layers} | ({"image": found["noise"][2]} if "noise" in found else {})
        return {
            "similarity_floor_random": ((axis,), nulls.floors(lowest), {"reason": random.reason}),
            **nulls.tested("similarity", best, run, wanted, {name: own[:2] for name, own in found.items()}),
            **{
                f"{SHARES[kind]}_null": (
                    (axis, "index"), np.stack([self._share(one[None])[0] for one in own]).astype(np.float32)
                )
                for kind, own in of_nothing.items()
            },
        }  # fmt: skip

    def _looked_in(self) -> list[int]:
        return self.index.chosen_layers(self.index_layers)  # type: ignore[union-attr]

    def _share_interval(self, neighbours: np.ndarray) -> list[tuple[str, np.ndarray, dict[str, str]]]:
        """Shares [depth, index] of all neighbours, and the ends of their interval over prompts.

        A prompt counts as much as it has neighbours.
        """
        own = np.stack([self._share(layers) for layers in neighbours])
        weights = np.broadcast_to((neighbours >= 0).sum((2, 3))[..., None], own.shape)
        found = Design(weights=weights).bootstrap(own, bounds=(0, 1))
        said = {"interval": found.said("prompts")}
        return [("", found.value, {}), ("_low", found.low, said), ("_high", found.high, said)]

    def _share(self, layers: np.ndarray) -> np.ndarray:
        """[depth, ...] index layers of neighbours -> [depth, index] shares that add up to 1; NaN without neighbours."""
        flat = layers.reshape(len(layers), -1)
        counts = np.stack([(flat == x).sum(1) for x in self._looked_in()], 1)
        return over(counts, counts.sum(1, keepdims=True))


class _Search:
    """What looks states up in the index of a lens."""

    def __init__(self, lens: LatentLens, run: Run) -> None:
        self.index: Any = lens.index
        self.top_k, self.without = lens.top_k, lens.without
        self.options: dict[str, Any] = {
            "layers": lens.index_layers, "calibration": lens.calibration, "distinct": lens.distinct,
            "method": lens.method,
        }  # fmt: skip
        # Token ids of another tokenizer cannot be compared.
        own = run.model.tokenizer_fingerprint == self.index.manifest["model"]["tokenizer"]
        self.barring = own and not lens.self_matches
        self.ahead = self.barring and nulls.looks_ahead(run.model)

    def __call__(
        self, states: Tensor, prompts: list[list[int]], prompt: np.ndarray, position: np.ndarray
    ) -> tuple[Found, np.ndarray]:
        """Neighbours of states [n, width] of these prompts and positions, and which have self-matches [n].

        None for a state of zeros, which has no direction (the embedding of a pad, say).
        """
        some = (states != 0).any(1).cpu().numpy()
        shape, matched = (len(states), self.top_k), np.zeros(len(states), bool)
        found = Found(np.full(shape, np.nan, np.float32), np.full(shape, -1, np.int32), np.full(shape, -1))
        if some.any():
            barred = None
            if self.barring:
                barred = self.index.same_beginnings(prompts, prompt[some], position[some], whole=self.ahead)
            if barred is not None:
                matched[np.flatnonzero(some)[barred[0]]] = True
            held = self.index.nearest(
                states[torch.from_numpy(some).to(states.device)], self.top_k, barred=barred, without=self.without,
                **self.options,
            )  # fmt: skip
            found.similarity[some], found.layer[some], found.row[some] = held.similarity, held.layer, held.row
        return found, matched

    def scores(self, null: nulls.Null) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each depth the best similarity [rows] of its null states, and the index layers [rows, rank]."""
        places = np.concatenate(null.prompt), np.concatenate(null.position)
        found, _ = self(torch.cat(null.states), null.prompts, *places)
        return null.split(found.similarity[:, 0]), null.split(found.layer)
