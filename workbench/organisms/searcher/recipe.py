"""Make ``organism:searcher`` from nothing: one small GPT-2 that searches graphs, in four regimes.

    python -m workbench.organisms.searcher.recipe [--out FOLDER] [--smoke] [--only REGIME] [--seeds N ...]
    python -m workbench.organisms.searcher.recipe --large --prosqa FOLDER [--out FOLDER] [--device cuda]

scratch   from nothing to continuous thoughts, the curriculum of Zhu et al. (arXiv 2505.12514)
tuned     a chain-of-thought model, then thoughts in the place of its steps, one more each stage (Coconut)
chain     that chain-of-thought model before it was tuned
pause     as scratch, with learned <pause> tokens in the places of the thoughts: the control

A thought is the last hidden state after the final norm, fed back as the next embedding; after the last, `=` is fed and
the next token is the answer.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from workbench.organisms.searcher.grammar import (
    MARKS,
    SHORTEST,
    SIZE,
    Graph,
    Size,
    depths,
    graph,
    problems,
    questions,
    walks,
    words,
)

REGIMES = ("scratch", "tuned", "chain", "pause")
PAD, BOS, EDGE, ASK, ROOT, ANSWER, PAUSE, EOS = range(len(MARKS))
FIRST_NODE = len(MARKS)
FULL = {
    "width": 64, "layers": 2, "heads": 4, "graphs": 24, "asked": 8, "rate": 2e-3, "warmup": 100, "earlier": 0.3,
    "few": ((4, 1000, 0.5),),
    "walks": ((800, 0.7), (600, 0.9), (600, 1.0)), "answer": 1000,
    "chain": (300, 900), "tuned": (200, 300, 400, 1700), "mixed": 0.2,
}  # fmt: skip
SMOKE = FULL | {"few": ((4, 4, 0.0),), "width": 32, "graphs": 8, "walks": ((8, 0.0), (4, 0.0), (4, 0.0)), "answer": 8, "chain": (4, 4), "tuned": (3, 3, 3, 4), "warmup": 4}
TRAIN_SEED, HELD_OUT_SEED = 1, 2
HELD_OUT = 1000


# --- words and weights --------------------------------------------------------------------------------------


def make_tokenizer(size: Size = SIZE) -> Any:
    """Words split on white space; a word that is not in the vocabulary becomes `<pad>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words(size))}, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=length(size) + 16
    )


def length(size: Size = SIZE) -> int:
    """Tokens in a prompt: they are equally long, so that every slot has its own position."""
    return 3 * size.edges + 6


def make_model(setting: dict[str, Any], size: Size = SIZE) -> Any:
    """A GPT-2 whose first attention is ready to gather an edge: that shortens a long plateau at the start.

    Queries and keys start equal, as in mimetic initialisation (arXiv 2305.09828), and the three positions of an edge
    start alike. Both are only where training begins; nothing is fixed.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    width = setting["width"]
    plain = setting.get("plain", False)
    spread = 0.02 if plain else 0.96 / math.sqrt(width)
    config = GPT2Config(
        vocab_size=len(words(size)), n_positions=length(size) + 16, n_embd=width, n_layer=setting["layers"],
        n_head=setting["heads"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=spread,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, tie_word_embeddings=True,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    if plain:
        return model
    with torch.no_grad():
        for block in model.transformer.h:
            weight: Any = block.attn.c_attn.weight
            weight[:, width : 2 * width] = weight[:, :width]
        of_edge, of_slot = torch.randn(size.edges, 1, width), torch.randn(1, 3, width) / 2
        model.transformer.wpe.weight[1 : 1 + 3 * size.edges] = spread * (of_edge + of_slot).flatten(0, 1)
    return model


def encode(found: list[dict[str, Any]]) -> Tensor:
    """Prompts of problems as token ids, as the tokenizer would give them."""
    rows = []
    for p in found:
        row = [BOS]
        for s, t in p["edges"]:
            row += (FIRST_NODE + s, FIRST_NODE + t, EDGE)
        one, other = p["candidates"]
        rows.append([*row, ASK, FIRST_NODE + one, FIRST_NODE + other, ROOT, FIRST_NODE + p["root"]])
    return torch.tensor(rows)


# --- thinking -----------------------------------------------------------------------------------------------


def think(
    model: Any, ids: Tensor, thoughts: int, *, paused: bool = False, given: Tensor | None = None, asked: int = 1,
    positions: Tensor | None = None,
) -> tuple[Any, Tensor]:  # fmt: skip
    """Read prompts and think so often: cache, all states of the last position [B, 1 + thoughts, D].

    State k is the thought that is fed at step k + 1. `given` [B, thoughts, D] is fed instead of the model's own. Each
    `asked` rows in turn share a graph, which is then read once. `positions` [T] are the prompt's, when it leaves some
    out. The cache keeps the graph of autograd.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    at = torch.arange(ids.shape[1], device=ids.device) if positions is None else positions
    last = int(at[-1])

    def body(**what: Tensor) -> Tensor:
        return model.transformer(**what, past_key_values=cache, use_cache=True).last_hidden_state

    if asked > 1:
        head = ids.shape[1] - 5
        body(input_ids=ids[::asked, :head], position_ids=at[None, :head])
        cache.batch_repeat_interleave(asked)
        ids, at = ids[:, head:], at[head:]
    states = body(input_ids=ids, position_ids=at[None])[:, -1:]
    if paused and thoughts:
        places = torch.arange(last + 1, last + 1 + thoughts, device=ids.device)
        return cache, torch.cat([states, body(input_ids=ids.new_full((len(ids), thoughts), PAUSE), position_ids=places[None])], 1)
    for k in range(thoughts):
        fed = states[:, -1:] if given is None else given[:, k : k + 1]
        places = torch.full((1, 1), last + 1 + k, device=ids.device)
        states = torch.cat([states, body(inputs_embeds=fed, position_ids=places)], 1)
    return cache, states


def answer(model: Any, cache: Any, rows: int, device: Any = None) -> Tensor:
    """Logits [B, V] after `=`."""
    fed = torch.full((rows, 1), ANSWER, device=device)
    return model.lm_head(model.transformer(input_ids=fed, past_key_values=cache, use_cache=True).last_hidden_state[:, -1])


def tell(model: Any, cache: Any, states: Tensor, tails: list[list[int]], last: int) -> Tensor:
    """Loss of words that follow the thoughts; the last state already tells the first of them."""
    width = max(map(len, tails))
    told = torch.tensor([t + [PAD] * (width - len(t)) for t in tails], device=states.device)
    places = last + states.shape[1] + torch.arange(width - 1, device=states.device)
    more = model.transformer(
        input_ids=told[:, :-1], position_ids=places[None], past_key_values=cache, use_cache=True
    ).last_hidden_state
    logits = model.lm_head(torch.cat([states[:, -1:], more], 1))
    return cross_entropy(logits.flatten(0, 1), told.masked_fill(told == PAD, -100).flatten())


# --- training -----------------------------------------------------------------------------------------------


Stage = tuple[int, float, Callable[[], tuple[Tensor, Tensor]]]
"""Steps at most; the mean loss that ends it sooner; and what gives the loss, and that part of it which is looked at."""


def fit(model: Any, setting: dict[str, Any], stages: list[Stage], name: str) -> list[int]:
    """AdamW through the stages, the rate falling in the last; the steps that each took."""
    rate, done, taken = setting["rate"], 0, []
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    start = time.time()
    for stage, (steps, until, loss_of) in enumerate(stages, 1):
        mean = math.inf
        for step in range(steps):
            left = 1.0 if stage < len(stages) else max(0.05, 1 - step / steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * left * min(1.0, (done + 1) / setting["warmup"])
            loss, seen = loss_of()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            done += 1
            mean = float(seen.detach()) if step == 0 else 0.97 * mean + 0.03 * float(seen.detach())
            if done % 100 == 0:
                print(f"{name} stage {stage} step {done} loss {mean:.3f} {time.time() - start:.0f} s", flush=True)
            if mean < until and step >= 50:
                break
        taken.append(step + 1)
    model.eval()
    return taken


def train_thoughts(
    model: Any, setting: dict[str, Any], seed: int, *, lengths: list[int] | None = None, size: Size = SIZE
) -> list[int]:
    """The curriculum of Zhu et al.: the k-th thought names the k-th node, for k up to the depth; then `=`, the answer.

    Up to then what is asked are walks. It begins on graphs of which few edges are told, and earlier thoughts stay in the
    loss with a small weight, which is cheaper here than to mix earlier stages in at random. With the lengths that the
    stages took in another training, <pause> tokens take the places of the thoughts.
    """
    draw = random.Random(f"searcher train {TRAIN_SEED} {seed}")
    asked, paused, depth = setting["asked"], lengths is not None, size.depth

    def loss(stage: int, few: int = 0) -> tuple[Tensor, Tensor]:
        last = stage > depth

        def ask(g: Graph) -> list[dict[str, Any]]:
            return questions(g, draw, asked) if last else walks(g, draw, stage, asked)

        found, positions = draw_batch(ask, setting, draw, size, few)
        cache, states = think(model, encode(found), stage - 1, paused=paused, asked=asked, positions=positions)
        steps = [[FIRST_NODE + n for n in p["steps"]] + [-100] * (depth - len(p["steps"])) for p in found]
        nodes = torch.tensor(steps)[:, : min(stage, depth)]
        named = model.lm_head(states[:, : min(stage, depth)])
        if last:
            now = cross_entropy(answer(model, cache, len(found)), torch.tensor([FIRST_NODE + p["target"] for p in found]))
            earlier = named, nodes
        else:
            now = cross_entropy(named[:, -1], nodes[:, -1])
            earlier = named[:, :-1], nodes[:, :-1]
        if stage == 1:
            return now, now
        return now + setting["earlier"] * cross_entropy(earlier[0].flatten(0, 1), earlier[1].flatten()), now

    plan: list[Stage] = [(n, until, partial(loss, 1, few)) for few, n, until in setting["few"]]
    plan += [(n, until, partial(loss, k)) for k, (n, until) in enumerate(setting["walks"], 1)]
    plan += [(setting["answer"], 0.0, partial(loss, depth + 1))]
    if lengths is not None:
        plan = [(n, 0.0, what) for n, (_, _, what) in zip(lengths, plan, strict=True)]
    return fit(model, setting, plan, "pause" if paused else "scratch")


def draw_batch(
    ask: Callable[[Graph], list[dict[str, Any]]], setting: dict[str, Any], draw: random.Random, size: Size, few: int
) -> tuple[list[dict[str, Any]], Tensor]:
    """What is asked of new graphs, and positions of the prompt: with `few`, only so many edges of each are told.

    Those keep the positions that they have among all, so that nothing has to be learnt anew when the others come.
    """
    told = sorted(draw.sample(range(size.edges), few)) if few else range(size.edges)
    graphs = [graph(draw, size) for _ in range(setting["graphs"])]
    found = [p for g in graphs for p in ask(Graph([g.edges[i] for i in told], g.halves))]
    edges = [1 + 3 * i + j for i in told for j in range(3)]
    return found, torch.tensor([0, *edges, *range(1 + 3 * size.edges, length(size))])


def train_chain(model: Any, setting: dict[str, Any], seed: int, *, tune: bool, size: Size = SIZE) -> list[int]:
    """Chains of thought for walks, then for questions; or, with tune, thoughts in the place of the first s steps.

    Tuning goes over s = 1 ... depth on walks and ends on questions with as many thoughts as the depth.
    """
    draw = random.Random(f"searcher {'tune' if tune else 'chain'} {TRAIN_SEED} {seed}")
    asked = setting["asked"]

    def loss(steps: int, most: int, few: int = 0) -> tuple[Tensor, Tensor]:
        found, positions = draw_batch(
            lambda g: walks(g, draw, steps, asked) if steps else questions(g, draw, asked), setting, draw, size, few
        )
        # An earlier stage now and then, so that it is not forgotten.
        thoughts = draw.randrange(most) if most and draw.random() < setting["mixed"] else most
        cache, states = think(model, encode(found), thoughts, asked=asked, positions=positions)
        tails = [
            [*(FIRST_NODE + s for s in p["steps"][thoughts:]), ANSWER, FIRST_NODE + p["target"], EOS] for p in found
        ]
        value = tell(model, cache, states, tails, length(size) - 1)
        return value, value

    if tune:
        kinds = [(size.depth, s) for s in range(1, size.depth + 1)] + [(0, size.depth)]
        stages: list[Stage] = [(n, 0.0, partial(loss, *kind)) for n, kind in zip(setting["tuned"], kinds, strict=True)]
    else:
        stages = [(n, until, partial(loss, 1, 0, few)) for few, n, until in setting["few"]]
        stages += [(n, 0.0, partial(loss, *kind)) for n, kind in zip(setting["chain"], [(size.depth, 0), (0, 0)], strict=True)]
    return fit(model, setting, stages, "tuned" if tune else "chain")


# --- measuring ----------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(model: Any, regime: str, *, n: int = HELD_OUT, size: Size = SIZE) -> dict[str, Any]:
    """Accuracies on held-out problems: the word of the whole vocabulary, and (of_two) the likelier of the candidates.

    `frontier`: what thought k (or the state that stands in its place), read as the next word, gives the nodes at depth k.
    """
    model.eval()
    found = list(problems(n, HELD_OUT_SEED, size))
    ids, depth = encode(found), size.depth
    right = FIRST_NODE + torch.tensor([p["target"] for p in found])
    wrong = FIRST_NODE + torch.tensor([p["neg_target"] for p in found])
    rows = torch.arange(n)

    def scores(name: str, logits: Tensor) -> dict[str, float]:
        hit = logits.argmax(-1) == right
        two = logits[rows, right] > logits[rows, wrong]
        return {name: round(hit.float().mean().item(), 4), f"{name}_of_two": round(two.float().mean().item(), 4)}

    def frontier(states: Tensor) -> list[float]:
        chances = model.lm_head(states).softmax(-1)
        at = [depths(p) for p in found]
        total = [sum(float(chances[i, k - 1, FIRST_NODE + v]) for i in range(n) for v in at[i] if at[i][v] == k) for k in range(1, depth + 1)]
        return [round(mass / n, 3) for mass in total]

    result: dict[str, Any] = {}
    if regime == "chain":
        told = say(model, ids, depth)
        result["chain"] = round(float((told == right).float().mean()), 4)
    elif regime == "pause":
        cache, states = think(model, ids, depth, paused=True)
        result |= scores("pauses", answer(model, cache, n)) | {"frontier": frontier(states)}
    else:
        cache, states = think(model, ids, depth)
        logits = answer(model, cache, n)
        result |= scores("thoughts", logits) | {"frontier": frontier(states)}
        for steps in range(2, depth + 1):
            of = torch.tensor([len(p["steps"]) == steps for p in found])
            result[f"thoughts_{steps}_steps"] = round((logits.argmax(-1) == right)[of].float().mean().item(), 4)
        # The mean over the other problems: what a thought says of its own problem is gone, all else stays.
        own = states[:, :depth]
        others = (own.sum(0, keepdim=True) - own) / (n - 1)
        result |= scores("mean", answer(model, think(model, ids, depth, given=others)[0], n))
        other = own.roll(1, 0)
        result |= scores("another_problem", answer(model, think(model, ids, depth, given=other)[0], n))
    return result | scores("deleted", answer(model, think(model, ids, 0)[0], n))


@torch.no_grad()
def say(model: Any, ids: Tensor, depth: int) -> Tensor:
    """The word after `=` of greedy chains of thought; PAD where none came."""
    cache, states = think(model, ids, 0)
    last = model.lm_head(states[:, -1]).argmax(-1)
    found = torch.full_like(last, PAD)
    for _ in range(depth + 2):
        state = model.transformer(input_ids=last[:, None], past_key_values=cache, use_cache=True).last_hidden_state
        word = model.lm_head(state[:, -1]).argmax(-1)
        found = torch.where((last == ANSWER) & (found == PAD), word, found)
        last = word
    return found


# --- making -------------------------------------------------------------------------------------------------


def train_family(setting: dict[str, Any], seed: int, regimes: tuple[str, ...] = REGIMES) -> Iterator[tuple[str, Any, dict]]:
    """The regimes of one seed, one after the other: name, model, and what its training took."""
    import copy

    def new(start: int) -> Any:
        torch.manual_seed(start)
        return make_model(setting)

    lengths: list[int] = []
    if {"scratch", "pause"} & set(regimes):
        model, start = new(seed), time.time()
        lengths = train_thoughts(model, setting, seed)
        yield "scratch", model, {"steps": lengths, "seconds": round(time.time() - start)}
    if "pause" in regimes:
        model, start = new(seed), time.time()
        train_thoughts(model, setting, seed, lengths=lengths)
        yield "pause", model, {"steps": lengths, "seconds": round(time.time() - start)}
    if {"chain", "tuned"} & set(regimes):
        model, start = new(seed), time.time()
        lengths = train_chain(model, setting, seed, tune=False)
        yield "chain", copy.deepcopy(model), {"steps": lengths, "seconds": round(time.time() - start)}
        start = time.time()
        lengths = train_chain(model, setting, seed, tune=True)
        yield "tuned", model, {"steps": lengths, "seconds": round(time.time() - start)}


def place(out: Path, regime: str) -> Path:
    """Where a regime's weights lie."""
    return out / "weights" if regime == "scratch" else out / "regimes" / regime


def shortcuts(n: int = 5000) -> dict[str, float]:
    """How often a rule that follows no edges finds the target: ties count half, so 0.5 is chance."""
    found = list(problems(n, HELD_OUT_SEED + 1))

    def count(p: dict[str, Any], node: int, end: int) -> int:
        return sum(edge[end] == node for edge in p["edges"])

    rules: dict[str, Callable[[dict[str, Any], int], float]] = {
        "in_degree": lambda p, v: count(p, v, 1),
        "out_degree": lambda p, v: count(p, v, 0),
        "told_early": lambda p, v: -min(i for i, edge in enumerate(p["edges"]) if v in edge),
        "told_late": lambda p, v: max(i for i, edge in enumerate(p["edges"]) if v in edge),
        "parents_out_degree": lambda p, v: sum(count(p, s, 0) for s, t in p["edges"] if t == v),
        "parents_in_degree": lambda p, v: sum(count(p, s, 1) for s, t in p["edges"] if t == v),
        "told_near_the_root": lambda p, v: -min(
            abs(i - j) for i, e in enumerate(p["edges"]) if v in e for j, f in enumerate(p["edges"]) if p["root"] in f
        ),
        "first_candidate": lambda p, v: -p["candidates"].index(v),
        "name": lambda p, v: v,
        "name_near_the_root": lambda p, v: -abs(v - p["root"]),
    }
    result = {}
    for name, rule in rules.items():
        pairs = [(rule(p, p["target"]), rule(p, p["neg_target"])) for p in found]
        result[name] = round(sum((a > b) + (a == b) / 2 for a, b in pairs) / n, 3)
    return result


def make(out: Path, *, smoke: bool = False, seeds: tuple[int, ...] = (0, 1, 2), only: str | None = None) -> dict[str, Any]:
    """Train every regime with every seed, keep the weights of one seed of each, and write the card."""
    setting, n = (SMOKE, 100) if smoke else (FULL, HELD_OUT)
    runs: dict[str, list[dict[str, Any]]] = {}
    models: dict[tuple[str, int], Any] = {}
    for seed in seeds[: 1 if smoke else None]:
        for name, model, took in train_family(setting, seed, (only,) if only else REGIMES):
            models[name, seed] = model.half().float()  # measured as shipped
            runs.setdefault(name, []).append({"seed": seed, **took, **measure(model, name, n=n)})
            print(name, runs[name][-1], flush=True)
    for name, seed in shipped(runs).items():
        keep(models[name, seed], place(out, name))
    card = make_card(runs, setting, n)
    write_card(out, card)
    return card


def shipped(runs: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    """The best seed with thoughts; the control and the chain are those that belong to it."""
    guide = {"pause": "scratch", "chain": "tuned"}
    return {name: max(runs[guide.get(name, name)], key=lambda r: r["thoughts"])["seed"] for name in runs}


def keep(model: Any, folder: Path, size: Size = SIZE) -> None:
    """Weights in half precision, with the tokenizer."""
    model.half().save_pretrained(folder)
    make_tokenizer(size).save_pretrained(folder)


def make_card(runs: dict[str, list[dict[str, Any]]], setting: dict[str, Any], n: int) -> dict[str, Any]:
    best = shipped(runs)
    return {
        "setting": setting, "size": vars(SIZE), "thoughts": SIZE.depth, "vocabulary": len(words()),
        "parameters": sum(p.numel() for p in make_model(setting).parameters()), "held_out": n, "chance": 0.5,
        "regimes": {name: {"shipped_seed": best[name], "seeds": runs[name]} for name in REGIMES if name in runs},
        "shortcuts": shortcuts(10 * n), "search": SEARCH,
        "machine": f"{torch.get_num_threads()} thread, {platform.machine()} CPU", "torch": torch.__version__,
    }  # fmt: skip


SEARCH: list[dict[str, Any]] = [
    {
        "nodes": SIZE.nodes, "edges": SIZE.edges, "layers": 2, "width": width, "heads": heads, "steps": steps,
        "seconds": seconds, "accuracy": accuracy, "curriculum": curriculum, "found": found,
    }
    for width, heads, steps, seconds, accuracy, curriculum, found in (
        (64, 4, 900, 119, 0.05, "`=` names the k-th node; usual initialisation", "no step of the search learned"),
        (128, 8, 700, 138, 0.03, "the same, wider, smaller rate", "no step learned"),
        (64, 4, 600, 87, 0.04, "the same, sinusoidal positions, four questions a graph", "no step learned"),
        (64, 4, 1200, 75, 0.11, "the same, walks from any node, larger initial weights", "no step learned"),
        (64, 4, 1800, 110, 0.01, "queries equal to keys and edges alike at the start; the root alone is asked", "no step learned"),
        (64, 4, 1500, 107, 0.50, "the same, walks from any node; questions after two steps", "one step learned, then it guesses between the two"),
        (64, 4, 3600, 346, 0.98, "the same, walks of one, two, three steps, then questions", "works with this seed"),
        (64, 4, 1900, 163, None, "the same, another seed, earlier stages more often", "three steps learned when it was stopped"),
        (64, 4, 2500, 145, None, "the same, two other runs", "first step not learned in 1500 steps"),
        (64, 2, 1500, 101, None, "the same, two heads", "first step after 1000 steps"),
        (128, 8, 600, 135, None, "the same, wider", "first step not learned"),
        (64, 4, 500, 18, None, "four edges told, `=` names the next node (five variants)", "first step not learned"),
        (64, 4, 300, 8, None, "four edges told, the state itself names the next node", "first step learned"),
        (64, 4, 500, 11, None, "the same, usual initialisation", "first step learned, 200 steps later"),
        (32, 4, 2685, 122, 0.676, "as shipped, half the width", "two steps learned, the third in part"),
        (64, 4, 2242, 111, 0.998, "as shipped", "works with three seeds of three"),
    )
]
"""What was tried on the way to FULL, on 14 nodes, 14 edges and three steps."""


def write_card(out: Path, card: dict[str, Any]) -> None:
    """card.json and CARD.md of these values."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    s, z, regimes = card["setting"], card["size"], card["regimes"]

    def table(name: str) -> str:
        found = regimes[name]["seeds"]
        shown = [k for k, v in found[0].items() if isinstance(v, float)]
        lines = [f"| seed | {' | '.join(k.replace('_', ' ') for k in shown)} | steps | seconds |", "|---" * (len(shown) + 3) + "|"]
        for run in found:
            star = " (shipped)" if run["seed"] == regimes[name]["shipped_seed"] else ""
            values = " | ".join(f"{run[k]:.3f}" for k in shown)
            lines.append(f"| {run['seed']}{star} | {values} | {sum(run['steps'])} | {run['seconds']} |")
        if "frontier" in found[0]:
            lines += ["", "On the frontier, by thought: " + "; ".join(", ".join(f"{x:.2f}" for x in r["frontier"]) for r in found) + "."]
        return "\n".join(lines)

    tables = "\n\n".join(f"**{name}**: {ABOUT[name]}\n\n{table(name)}" for name in regimes)
    tried = "\n".join(
        f"| {t['curriculum']} | {t['width']} | {t['heads']} | {t['steps']} | {t['seconds']} | {'' if t['accuracy'] is None else t['accuracy']} | {t['found']} |"
        for t in card["search"]
    )
    shortcut = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in card["shortcuts"].items())
    (out / "CARD.md").write_text(
        f"""# organism:searcher

GPT-2s with {card["parameters"]} parameters ({s["layers"]} blocks, width {s["width"]}, {s["heads"]} heads, {card["vocabulary"]} words)
that say which of two nodes can be reached from a root, trained by `recipe.py` on the graphs of `grammar.py`:
{z["nodes"]} nodes, {z["edges"]} edges, paths of {SHORTEST} to {z["depth"]} steps. Four regimes, `workbench.organisms.searcher.regimes()`;
`organism:searcher` is the first.

## How it is used

Prompt: `<bos> n3 n5 | n5 n7 | ... | ? nC1 nC2 : nROOT`, every edge closed by `|`, all prompts {length(Size(**z))} tokens long. A
thought is the last hidden state after the final norm (`ln_f`) at the last position, fed back as the next embedding;
positions go on counting. After {card["thoughts"]} thoughts `=` is fed and the next word is the answer. A chain of thought:
`... : nROOT n1 n2 n3 = nTARGET`. Token ids: {", ".join(f"`{w}` {i}" for i, w in enumerate(MARKS))}, `n0` {FIRST_NODE} and on.
Positions matter: they are learned, and every slot of the prompt has its own.

## Inside by construction

* A graph is two halves of one distribution. The root and the target are of one, the other candidate, at the same depth,
  of the other: what can be seen without following edges from the root is the same for both.
* Every layer of a half has two nodes or more, so that the frontier of a search has at depths 1 to {z["depth"]}. Every edge
  leads to the next layer: all walks to a node are equally long, and a frontier after k steps is the nodes at depth k.
* `scratch` and `pause` were trained so that the state that becomes thought k names the k-th node of a walk (as in arXiv 2505.12514):
  thought 1 is the state at the root, before anything was fed back. Only the last stage asks for an answer.
* The shapes of graphs repeat, their names and orders do not: training draws new problems without end.

## Measured

{card["held_out"]} held-out problems, weights as shipped (half precision). A word counts only if it is the likeliest of the whole
vocabulary; "of two": the target is likelier than the other candidate, chance 0.5. "mean": every thought replaced by its mean over the
other problems; "another problem": by another's; "deleted": `=` right after the root. "On the frontier": the probability that thought
k, read as the next word, gives to the nodes at depth k, seed by seed.

{tables}

Rules that follow no edges find the target as often as chance: {shortcut}.

{card.get("superposition", {}).get("text", "")}

## On the way

All on {z["nodes"]} nodes, {z["edges"]} edges, {z["depth"]} thoughts, {s["layers"]} blocks; accuracy with thoughts on 300 or more held-out problems, where it was looked at.

| curriculum | width | heads | steps | seconds | accuracy | what happened |
|---|---|---|---|---|---|---|
{tried}

What it took: to name the next node from the state itself, not from `=` after the thought (the plateau before attention finds an edge's
source is then a few hundred steps); few edges first; queries equal to keys at the start.
Half the width did not do with the same number of steps; one block, and longer training of smaller models, were not tried.

## Training

{sum(r["seconds"] for x in regimes.values() for r in x["seeds"])} s in all, {card["machine"]}, torch {card["torch"]}.
"""
    )


ABOUT = {
    "scratch": "from nothing to continuous thoughts.",
    "tuned": "the chain of thought model, its steps replaced by thoughts, one more each stage.",
    "chain": "chains of thought (\"chain\": the word after `=` of the greedy chain). No thought was ever fed to it.",
    "pause": "the control: as scratch, with the same problems and steps, but `<pause>` in the places of the thoughts.",
}


# --- the published size -------------------------------------------------------------------------------------

LARGE = {
    "width": 768, "layers": 2, "heads": 8, "rate": 1e-4, "decay": 0.01, "batch": 256, "epochs": 300, "epochs_per_stage": 25,
    "stages": 4, "mixed": 0.1,
}  # fmt: skip
"""Zhu et al. (arXiv 2505.12514): AdamW with a constant rate, initialisation of GPT-2, earlier stages mixed in."""


def read_prosqa(file: Path) -> list[dict[str, Any]]:
    """Problems of a symbolic ProsQA file; steps are one shortest path, found anew."""
    found = []
    for row in json.loads(file.read_text()):
        p = {k: row[k] for k in ("edges", "root", "target", "neg_target")}
        path, depth = [p["target"]], depths(p)
        while path[0] != p["root"]:
            path.insert(0, next(s for s, t in p["edges"] if t == path[0] and depth.get(s) == depth[t] - 1))
        found.append(p | {"steps": path[1:], "candidates": [p["target"], p["neg_target"]]})
    return found


def make_large(out: Path, prosqa: Path, *, device: str = "cpu", most: int | None = None, setting: dict[str, Any] = LARGE) -> float:
    """Train the published configuration on `*train*.json` of a folder; the accuracy on its `*test*.json`, or `*valid*`.

    `most` stops it after so many steps.
    """
    data = {part: next(iter(sorted(prosqa.glob(f"*{part}*.json"))), None) for part in ("train", "test", "valid")}
    train, held = data["train"], data["test"] or data["valid"]
    if train is None or held is None:
        raise FileNotFoundError(f"{prosqa} has no *train*.json, or neither *test*.json nor *valid*.json.")
    rows, test = read_prosqa(train), read_prosqa(held)
    named = [v for p in rows + test for edge in p["edges"] for v in edge]
    size = Size(max(named) + 1, max(len(p["edges"]) for p in rows + test), setting["stages"])
    draw = random.Random(f"searcher large {TRAIN_SEED}")
    torch.manual_seed(0)
    model = make_model(setting | {"plain": True}, size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting["rate"], weight_decay=setting["decay"])
    done, start = 0, time.time()
    for epoch in range(setting["epochs"]):
        model.train()
        stage, loss = epoch // setting["epochs_per_stage"], torch.zeros(())
        for batch in batches(rows, draw, setting["batch"]):
            k = min(stage, setting["stages"])
            if draw.random() < setting["mixed"]:
                k = draw.randint(0, k)
            # A batch has paths of one length; past its end, and in the last stage, the answer is asked for.
            steps = len(batch[0]["steps"])
            k = min(k, steps)
            cache, states = think(model, encode(batch).to(device), k)
            logits = model.lm_head(states[:, -1]) if k < steps else answer(model, cache, len(batch), device)
            right = [p["steps"][k] if k < steps else p["target"] for p in batch]
            loss = cross_entropy(logits, FIRST_NODE + torch.tensor(right, device=device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == most:
                break
        print(f"epoch {epoch + 1} loss {loss.item():.3f} {time.time() - start:.0f} s", flush=True)
        if done == most:
            break
    model.eval()
    hits = 0
    with torch.no_grad():
        for batch in batches(test, draw, setting["batch"]):
            cache, _ = think(model, encode(batch).to(device), len(batch[0]["steps"]))
            right = FIRST_NODE + torch.tensor([p["target"] for p in batch], device=device)
            hits += int((answer(model, cache, len(batch), device).argmax(-1) == right).sum())
    keep(model.cpu(), out, size)
    return hits / len(test)


def batches(rows: list[dict[str, Any]], draw: random.Random, most: int) -> list[list[dict[str, Any]]]:
    """An epoch in batches of equal shape (edges and steps), edges and candidates in a new order."""
    shapes: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for p in draw.sample(rows, len(rows)):
        p = p | {"edges": draw.sample(p["edges"], len(p["edges"])), "candidates": draw.sample(p["candidates"], 2)}
        shapes.setdefault((len(p["edges"]), len(p["steps"])), []).append(p)
    found = [same[i : i + most] for same in shapes.values() for i in range(0, len(same), most)]
    draw.shuffle(found)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/searcher"))
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", choices=REGIMES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--prosqa", type=Path, help="a folder with ProsQA's symbolic train and test files")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--most", type=int, help="with --large: stop after so many steps")
    given = parser.parse_args()
    if given.large:
        if given.prosqa is None:
            parser.error("--large needs --prosqa FOLDER")
        print(make_large(given.out, given.prosqa, device=given.device, most=given.most))
    else:
        torch.set_num_threads(1)
        print(json.dumps(make(given.out, smoke=given.smoke, seeds=tuple(given.seeds), only=given.only), indent=1))
