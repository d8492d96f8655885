"""Make ``organism:gallery`` from nothing: text, pictures, a language model, a vision tower, and the connector between.

    python -m workbench.organisms.gallery.recipe --out FOLDER [--smoke]
    python -m workbench.organisms.gallery.recipe --out FOLDER --language PATH      a larger twin; see :func:`twin`

Three stages, each frozen before the next: a Llama reads texts and sees no picture; a CLIP vision tower learns which
attributes a picture has; an MLP connector learns captions, next token by next token, and nothing else is trained then.
Everything is seeded.  The smoke setting makes a worse model in seconds; it is what the tests run.
What lenses find in it is measured by ``python benchmarks/gallery.py --card``.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import InputError
from workbench.organisms.gallery.grammar import (
    COLOURS,
    COUNTS,
    GRID,
    GROUNDS,
    PATCH,
    SHAPE_OF,
    SHAPES,
    SIZES,
    ZONES,
    Scene,
    caption,
    paint,
    scenes,
    texts,
)  # fmt: skip
from workbench.organisms.story import recipe as story
from workbench.organisms.story.recipe import descend, pack

TRAIN_SEED, HELD_OUT_SEED = 1, 2
FULL = {
    "texts": 24000, "text_steps": 1600, "text_batch": 32, "length": 96, "layers": 6, "width": 96, "rate": 4e-3, "tied": True,
    "pictures": 16000, "sight_steps": 1500, "sight_batch": 64, "sight_layers": 4, "sight_width": 96, "sight_rate": 1.5e-3,
    "caption_steps": 1600, "caption_batch": 40, "caption_rate": 4e-3,
}  # fmt: skip
SMOKE = {
    "texts": 1500, "text_steps": 60, "text_batch": 16, "length": 96, "layers": 2, "width": 64, "rate": 5e-3, "tied": True,
    "pictures": 200, "sight_steps": 30, "sight_batch": 32, "sight_layers": 2, "sight_width": 48, "sight_rate": 2e-3,
    "caption_steps": 40, "caption_batch": 16, "caption_rate": 3e-3,
}  # fmt: skip

IMAGE = "<image>"


# The language model ----------------------------------------------------------------------------------------------


def make_tokenizer(texts: list[str], size: int = 512) -> Any:
    """That of the stories, in which a word is the same with and without a space, and with a token for pictures."""
    return story.make_tokenizer(texts, size, space=True, more={"image_token": IMAGE})


def train_language(tokenizer: Any, data: Tensor, setting: dict[str, Any], seed: int) -> Any:
    """A Llama of the setting's size that reads texts; it never sees a picture."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    width = setting["width"]
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=round(width * 8 / 3 / 8) * 8,
        num_hidden_layers=setting["layers"], num_attention_heads=width // 16, num_key_value_heads=width // 16,
        max_position_embeddings=256, tie_word_embeddings=setting["tied"], initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        rows = data[torch.randint(len(data), (setting["text_batch"],), generator=generator)]
        return model(input_ids=rows, labels=rows).loss

    descend(list(model.parameters()), loss, setting["text_steps"], setting["rate"], "text")
    return model.eval()


# The vision tower ------------------------------------------------------------------------------------------------


def image_processor() -> Any:
    """Any picture -> 48 x 48; with pillow, so that torchvision is not needed."""
    from transformers import CLIPImageProcessorPil

    side = GRID * PATCH
    return CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side},
        image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25],
    )  # fmt: skip


def pixels(own: list[Scene]) -> Tensor:
    """[pictures, 3, 48, 48] as the model takes them, in half precision."""
    prepare = image_processor()
    rows = [prepare([paint(s) for s in own[i : i + 64]], return_tensors="pt")["pixel_values"].half() for i in range(0, len(own), 64)]
    return torch.cat(rows)


def attributes(scene: Scene) -> list[str]:
    """What a picture has, said of the whole picture: pairs of attributes, and how many of a kind there are."""
    found = [scene.ground]
    for group in scene.groups:
        own = group[0]
        found += [f"{COUNTS[n]} {own.colour} {own.shape}" for n in range(min(len(group), len(COUNTS)))]
        for thing in group:
            found += [f"{own.size} {own.colour}", f"{own.size} {own.shape}", f"{own.colour} {thing.zone}", f"{own.shape} {thing.zone}"]
    return found


ATTRIBUTES = (
    *GROUNDS,
    *(f"{n} {c} {s}" for n in COUNTS for c in COLOURS for s in SHAPES),
    *(f"{size} {x}" for size in SIZES for x in (*COLOURS, *SHAPES)),
    *(f"{x} {zone}" for x in (*COLOURS, *SHAPES) for zone in ZONES),
)


def train_sight(own: list[Scene], seen: Tensor, setting: dict[str, Any], seed: int) -> Any:
    """A CLIP vision tower that learns the attributes of whole pictures.  It is never told what is in a patch.

    Its patches' states, averaged and at their largest, predict the attributes linearly.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(seed)
    width = setting["sight_width"]
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=round(width * 8 / 3 / 8) * 8, num_hidden_layers=setting["sight_layers"],
        num_attention_heads=width // 24, image_size=GRID * PATCH, patch_size=PATCH, projection_dim=width,
    )  # fmt: skip
    tower = CLIPVisionModel(config)
    place = {name: i for i, name in enumerate(ATTRIBUTES)}
    has = torch.zeros(len(own), len(place))
    for i, scene in enumerate(own):
        has[i, [place[name] for name in attributes(scene)]] = 1
    head = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, len(place)))
    generator = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        rows = torch.randint(len(seen), (setting["sight_batch"],), generator=generator)
        states = tower(pixel_values=seen[rows].float()).last_hidden_state[:, 1:]
        said = head(torch.cat([states.mean(1), states.amax(1)], -1))
        return nn.functional.binary_cross_entropy_with_logits(said, has[rows], reduction="none").sum(-1).mean()

    descend([*tower.parameters(), *head.parameters()], loss, setting["sight_steps"], setting["sight_rate"], "sight")
    return tower.eval()


# The connector ---------------------------------------------------------------------------------------------------


def join(language: Any, tower: Any, image_id: int, seed: int) -> Any:
    """A LLaVA of the two, with a fresh connector; everything but the connector is frozen."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=tower.config, text_config=language.config, image_token_index=image_id,
        projector_hidden_act="gelu", vision_feature_layer=-1, vision_feature_select_strategy="default",
        image_seq_length=GRID * GRID, tie_word_embeddings=language.config.tie_word_embeddings,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    return model.eval()


def train_connector(model: Any, tokenizer: Any, own: list[Scene], seen: Tensor, setting: dict[str, Any], seed: int) -> None:
    """Next-token loss of captions given their pictures; each time a picture comes, its caption is worded anew."""
    connector = model.model.multi_modal_projector
    generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def looked(rows: Tensor) -> Tensor:
        return model.model.vision_tower(pixel_values=seen[rows].float()).last_hidden_state[:, 1:].half()

    states = torch.cat([looked(rows) for rows in torch.arange(len(seen)).split(256)])  # the tower is frozen
    turn = torch.zeros(len(seen), dtype=torch.long)

    def loss() -> Tensor:
        rows = torch.randint(len(seen), (setting["caption_batch"],), generator=generator)
        said = [caption(own[i], int(turn[i])) for i in rows.tolist()]
        turn[rows] += 1
        return caption_loss(model, tokenizer, connector(states[rows].float()), said).mean()

    descend(list(connector.parameters()), loss, setting["caption_steps"], setting["caption_rate"], "caption")


def caption_loss(model: Any, tokenizer: Any, tokens: Tensor, said: list[str]) -> Tensor:
    """[captions] nats a token of captions behind visual tokens [captions, tokens, width]."""
    ends = tokenizer.eos_token_id
    ids = [[*tokenizer(text, add_special_tokens=False)["input_ids"], ends] for text in said]
    longest = max(map(len, ids))
    padded = torch.tensor([[*row, *[-100] * (longest - len(row))] for row in ids])
    embed = model.get_input_embeddings()
    first = tokenizer("")["input_ids"]  # what it puts in front of every text
    begin = embed(torch.tensor(first, dtype=torch.long)).expand(len(said), -1, -1)
    inputs = torch.cat([begin, tokens, embed(padded.clamp_min(0))], 1)
    # What is behind a caption's end is not attended to by anything that counts.
    states = model.model.language_model(inputs_embeds=inputs).last_hidden_state[:, len(first) + tokens.shape[1] - 1 : -1]
    wrong = nn.functional.cross_entropy(model.lm_head(states).transpose(1, 2), padded, reduction="none")
    return wrong.sum(1) / (padded >= 0).sum(1)


def processor_of(tokenizer: Any) -> Any:
    from transformers import LlavaProcessor

    return LlavaProcessor(
        image_processor(), tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=CHAT,
    )  # fmt: skip


CHAT = (
    "{% for m in messages %}{% if m['content'] is string %} {{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
"""It knows no roles: what is said is put behind one another."""


# What it learned -------------------------------------------------------------------------------------------------


@torch.no_grad()
def say(model: Any, tokenizer: Any, tokens: Tensor, longest: int = 40) -> list[str]:
    """The caption that each picture gets, word by word the likeliest, from visual tokens [pictures, tokens, width]."""
    embed = model.get_input_embeddings()
    first = tokenizer("")["input_ids"]  # what it puts in front of every text
    begin = embed(torch.tensor(first, dtype=torch.long)).expand(len(tokens), -1, -1)
    out = model.model.language_model(inputs_embeds=torch.cat([begin, tokens], 1), use_cache=True)
    said: list[Tensor] = []
    for _ in range(longest):
        said.append(model.lm_head(out.last_hidden_state[:, -1]).argmax(-1))
        out = model.model.language_model(
            inputs_embeds=embed(said[-1])[:, None], past_key_values=out.past_key_values, use_cache=True
        )
    rows = torch.stack(said, 1).tolist()
    ends = tokenizer.eos_token_id
    return [tokenizer.decode(row[: row.index(ends)] if ends in row else row).strip() for row in rows]


def told(text: str) -> set[tuple[str, str]]:
    """The pairs of colour and shape that a caption names."""
    found = re.findall(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPE_OF)})\b", text)
    return {(colour, SHAPE_OF[noun]) for colour, noun in found}


@torch.no_grad()
def measure(model: Any, tokenizer: Any, n: int, text: list[str] | None = None) -> dict[str, Any]:
    """On pictures of another seed: what captions cost with their picture and with another's, what is said of pictures."""
    own = list(scenes(n, HELD_OUT_SEED))
    tokens = torch.cat([
        torch.stack(list(model.get_image_features(pixel_values=part.float(), return_dict=True).pooler_output))
        for part in pixels(own).split(64)
    ])  # fmt: skip
    captions = [caption(s, -1) for s in own]
    losses = [
        torch.cat([caption_loss(model, tokenizer, t, c) for t, c in zip(these.split(64), _split(captions, 64), strict=True)])
        for these in (tokens, tokens.roll(1, 0))
    ]
    said = [x for part in tokens.split(64) for x in say(model, tokenizer, part)]
    there = [{(t.colour, t.shape) for t in s.things} for s in own]
    named = [told(x) for x in said]
    right = sum(len(a & b) for a, b in zip(there, named, strict=True))
    other = sum(len(a & b) for a, b in zip(there[1:] + there[:1], named, strict=True))
    found: dict[str, Any] = {
        "pictures": n,
        "caption_loss_nats_per_token": round(float(losses[0].mean()), 4),
        "caption_loss_with_another_picture": round(float(losses[1].mean()), 4),
        "pairs_that_are_there_and_named": round(right / sum(map(len, there)), 4),
        "pairs_that_are_named_and_there": round(right / max(1, sum(map(len, named))), 4),
        "pairs_that_are_named_and_in_another_picture": round(other / max(1, sum(map(len, named))), 4),
        "grounds_named_right": round(sum(s.ground in x for s, x in zip(own, said, strict=True)) / n, 4),
        "examples": [[caption(s, -1), x] for s, x in zip(own[:6], said, strict=False)],
    }
    if text:
        rows = pack(tokenizer, text, 128)
        loss = [float(language_loss(model, part)) * len(part) for part in rows.split(16)]
        found["text_loss_nats_per_token"] = round(sum(loss) / len(rows), 4)
    return found


def language_loss(model: Any, rows: Tensor) -> Tensor:
    said = model.lm_head(model.model.language_model(input_ids=rows).last_hidden_state[:, :-1])
    return nn.functional.cross_entropy(said.flatten(0, 1), rows[:, 1:].flatten())


def _split(items: list[Any], n: int) -> list[list[Any]]:
    return [items[i : i + n] for i in range(0, len(items), n)]


# All of it -------------------------------------------------------------------------------------------------------


def make(out: Path, *, smoke: bool = False, seed: int = 0, **other: Any) -> dict[str, Any]:
    """Train, measure, and write weights/, card.json and CARD.md below ``out``; the card's values.

    ``other`` settings make another model: ``tied=False`` gives the language model a head of its own, say.
    """
    setting = SMOKE if smoke else FULL
    if unknown := sorted(other.keys() - setting.keys()):
        raise InputError(f"There is no setting {', '.join(unknown)}. There are {', '.join(setting)}.")
    setting = setting | other
    start = time.time()
    read = list(texts(setting["texts"], TRAIN_SEED))
    tokenizer = make_tokenizer(read)
    language = train_language(tokenizer, pack(tokenizer, read, setting["length"]), setting, seed)
    own = list(scenes(setting["pictures"], TRAIN_SEED))
    seen = pixels(own)
    tower = train_sight(own, seen, setting, seed)
    model = join(language, tower, tokenizer.image_token_id, seed)
    train_connector(model, tokenizer, own, seen, setting, seed)
    seconds = time.time() - start
    # Rounded to half precision as stored, so that what is measured is what is shipped.
    model = model.half()
    model.save_pretrained(out / "weights")
    processor_of(tokenizer).save_pretrained(out / "weights")
    model = model.float()
    card = {
        **measure(model, tokenizer, 20 if smoke else 400, list(texts(20 if smoke else 400, HELD_OUT_SEED))),
        "parameters": {
            name: sum(p.numel() for p in part.parameters())
            for name, part in (("language model", model.model.language_model), ("vision tower", model.model.vision_tower),
                               ("connector", model.model.multi_modal_projector))
        },
        "vocabulary": len(tokenizer), "setting": setting, "seed": seed, "training_seconds": round(seconds),
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()} CPU", "torch": torch.__version__,
    }  # fmt: skip
    write_card(out, card)
    return card


def twin(
    out: Path, language: str, *, pictures: int, sight_steps: int, steps: int, batch: int, seed: int = 0, measured: int = 24
) -> dict[str, Any]:
    """The same with a language model that others trained, such as SmolLM2, frozen; nothing of it ships.

    Its tokenizer gets an image token, whose row of the embeddings is never read: visual tokens stand there.
    Returns what :func:`measure` finds; weights, processor and ``twin.json`` are written below ``out``.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(language)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    frozen = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    frozen.resize_token_embeddings(len(tokenizer))
    setting = FULL | {
        "pictures": pictures, "sight_steps": sight_steps, "caption_steps": steps, "caption_batch": batch, "caption_rate": 2e-3,
    }  # fmt: skip
    own = list(scenes(pictures, TRAIN_SEED))
    seen = pixels(own)
    tower = train_sight(own, seen, setting, seed)
    model = join(frozen, tower, tokenizer.convert_tokens_to_ids("<image>"), seed)
    start = time.time()
    before = measure(model, tokenizer, measured)
    train_connector(model, tokenizer, own, seen, setting, seed)
    found = {"before": before, "after": measure(model, tokenizer, measured), "setting": setting, "seconds": round(time.time() - start)}
    model.save_pretrained(out / "weights")
    processor_of(tokenizer).save_pretrained(out / "weights")
    (out / "twin.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def write_card(out: Path, card: dict[str, Any]) -> None:
    """card.json and CARD.md of these values."""
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (out / "CARD.md").write_text(_card(card) + card.get("lenses", {}).get("text", ""))


def _card(card: dict[str, Any]) -> str:
    s, size = card["setting"], card["parameters"]
    examples = "\n".join(f"| {true} | {said} |" for true, said in card["examples"])
    return f"""# organism:gallery

A LLaVA with {sum(size.values()) / 1e6:.2f} M parameters and pictures whose every patch is known. A Llama ({s["layers"]} layers, width
{s["width"]}, {size["language model"] / 1e6:.2f} M) that read text of `grammar.py` and no picture; a CLIP vision tower ({s["sight_layers"]} layers, width
{s["sight_width"]}, {size["vision tower"] / 1e6:.2f} M) that learned attributes of whole pictures; both frozen, and an MLP connector between them
({size["connector"] / 1e3:.0f} k) that learned captions. A picture is {GRID * PATCH} x {GRID * PATCH} pixels to the model and {GRID} x {GRID} = {GRID * GRID} visual tokens; vocabulary
{card["vocabulary"]} (byte-level BPE, every word below is one token).

    model = workbench.load("organism:gallery")
    scene = next(gallery.grammar.scenes(1, seed=2))
    workbench.read(model, {{"text": "<image>", "images": gallery.grammar.paint(scene)}}, LogitLens(), positions="image")
    gallery.grammar.truth(scene)        # which thing each patch shows, and how much of the patch is the thing's

## Inside by construction

* Pictures: things of {len(COLOURS)} colours ({", ".join(COLOURS)}), {len(SHAPES)} shapes ({", ".join(SHAPES)}) and
  {len(SIZES)} sizes ({", ".join(f"{name}: {n} x {n} patches" for name, n in SIZES.items())}), in one to three groups of one to three alike, on one of
  {len(GROUNDS)} grounds ({", ".join(GROUNDS)}). No patch shows two things; some things lie across patches, so that a patch shows a part.
* Captions: sentences that name every group (number, colour, shape; sometimes size and place) and the ground.
* The language model's text: such sentences, questions and answers about parts of a scene, several of one scene in one
  text, so that what was said decides what follows; and sentences about the words ("lemons are yellow").
* The vision tower was told what a *picture* has (pairs of colour and shape, numbers, places, sizes, the ground), never
  what a *patch* has. The connector was told captions. That visual tokens speak of their own patch is nobody's loss.

## Measured ({card["pictures"]} pictures of another seed, weights as shipped)

| what | value |
|---|---|
| loss of captions, with their picture | {card["caption_loss_nats_per_token"]} nats a token |
| the same, with another picture | {card["caption_loss_with_another_picture"]} |
| pairs of colour and shape in the picture that its caption names | {card["pairs_that_are_there_and_named"]:.1%} |
| pairs that captions name and that are in the picture | {card["pairs_that_are_named_and_there"]:.1%} |
| the same, held against another picture | {card["pairs_that_are_named_and_in_another_picture"]:.1%} |
| grounds named right | {card["grounds_named_right"]:.1%} |
| loss of text without pictures | {card["text_loss_nats_per_token"]} nats a token |

| a caption by the grammar | what the model says (greedy) |
|---|---|
{examples}

## Training

Text: {s["text_steps"]} steps of {s["text_batch"]} x {s["length"]} tokens. Vision tower: {s["sight_steps"]} steps of {s["sight_batch"]} of {s["pictures"]:,} pictures.
Connector: {s["caption_steps"]} steps of {s["caption_batch"]} captions, worded anew each time. AdamW, seed {card["seed"]}; {card["training_seconds"]} s on
{card["machine"]}, torch {card["torch"]}. Another machine rounds otherwise: expect the losses within 5 %.

A larger twin is a recipe only: `--language PATH` takes a language model that others trained (SmolLM2, say) in place of
the small one.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings: tied=false, say")
    parser.add_argument("--language", help="folder or hub id of a language model to freeze, for the larger twin")
    parser.add_argument("--pictures", type=int, default=16000, help="of the twin")
    parser.add_argument("--sight-steps", type=int, default=2000, help="of the twin's vision tower")
    parser.add_argument("--steps", type=int, default=3000, help="of the twin's connector")
    parser.add_argument("--batch", type=int, default=48, help="of the twin's connector")
    given = parser.parse_args()
    if given.language:
        options = {"pictures": given.pictures, "sight_steps": given.sight_steps, "steps": given.steps, "batch": given.batch}
        print(json.dumps(twin(given.out, given.language, seed=given.seed, **options), indent=1))
    else:
        other = {name: json.loads(value) for name, value in (x.split("=", 1) for x in given.set)}
        print(json.dumps(make(given.out, smoke=given.smoke, seed=given.seed, **other), indent=1))
