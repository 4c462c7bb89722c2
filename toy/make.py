# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""The miniature: tiny networks, trained from nothing on drawn shapes, so that every recipe runs on a laptop's CPU.

    python -m toy.make                # all three, into toy/ (some three hours of one core)
    python -m toy.make sam2           # or some of: sam2, qwen2_5_vl, qwen3_vl

    toy/sam2         SAM2 from the sam2 package's own classes, 128 x 128 input (segmenter.yaml there says how: keep it)
    toy/qwen2_5_vl   Qwen2.5-VL with a small tokenizer; it knows the answer format of every recipe
    toy/qwen3_vl     a Qwen3-VL of 2.1 M parameters, which writes 0-1000

SAM2 learns as SAM did: from noisy boxes and points, then from a click where its mask errs.

A policy learns in three stages. *See*: the vision tower alone is asked what each image token shows (`Sight`). That is
what made the rest quick: taught by the words of answers alone, a network of nearly this size saw badly after 2,600
steps. *Answer*: true answers in every recipe's format, and attention is told where to look (`lookups`): a name at the
things of that name, a coordinate at the thing that it belongs to. *Bias*: a few steps of answers that are wrong in a
way that reinforcement can measure and find (`answer_of`): moved boxes, a thing left out, "nothing fits" said too
seldom.

`python -m studies.words toy/qwen2_5_vl` counts how often the masks follow the words.

The shipped networks were made by these commands, but not in one go: sam2 with --resume from an older one; qwen2_5_vl as
see=3000, answer=1200 (a coordinate's lookups alone), then with --resume answer=2400 and bias=300; qwen3_vl as see=2500,
answer=2000, bias=300, each with --resume. made.txt has what they printed.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy.ndimage import distance_transform_edt
from tqdm import tqdm

import data
import grpo
import model as models
import rewards
from toy import world

# What a policy is taught to write, and how often: every recipe's format.
SCHEMA_MIX = {
    "drseg": 0.25,
    "visionreasoner": 0.12,
    "segzero": 0.1,
    "samr1": 0.13,
    "lens": 0.12,
    "genseg": 0.12,
    "genseg-g": 0.16,
}
IMAGE_SIZE = {"qwen2_5_vl": 168, "qwen3_vl": 192}  # 6 x 6 image tokens
SIDE = 6  # image tokens along a side
PICTURES = 8  # of a step's lessons
GRID = {"pixels": 4, "thousand": 20}  # coordinates are written in such steps: 43 or 51 numbers to be learned, not 1,001


def writes_in(family: str) -> tuple[tuple[int, int], int]:
    """(frame, step) of the coordinates that a family's policy writes."""
    return data.model_frame(family, (IMAGE_SIZE[family],) * 2), GRID[data.FAMILIES[family]]


SAM2_CONFIG = Path(__file__).resolve().parent / "sam2" / "segmenter.yaml"

DESCRIBE = "Describe the picture."
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


@functools.cache
def build_tokenizer():
    """Byte-level BPE on the miniature's own language; every number from 0 to 1000 is one token. Any other text still
    encodes."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as bpe
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(bpe.BPE())
    # Tags, numbers and the words of requests are tokens of their own; the fixed phrases between them may merge into one
    # token each. That makes prompts and answers three times shorter than word by word, and everything here as much
    # faster.
    others = "the all thing shapes? largest smallest left right top bottom".split()
    names = "|".join([*world.COLORS, *world.SHAPES, *others])
    content = rf"</?[a-z]+>|(?<![A-Za-z_0-9])[0-9]+| ?\b(?:{names})(?:es|s)?\b|\n"
    words = Regex(rf"{content}|(?:(?!{content}).)+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [str(n) for n in range(1001) for _ in range(5)] + ["user\n", "assistant\n"] * 5
    rng = np.random.default_rng(0)
    for i in range(1500):
        scene = world.toy_scene(9, i)
        corpus += [DESCRIBE, describe(scene, (world.SIDE, world.SIDE), 1)]
        corpus += [text for asked, told, _ in locate(scene, (world.SIDE, world.SIDE), 1) for text in (asked, told)]
        for schema in SCHEMA_MIX:
            corpus += [data.build_prompt(scene["query"], schema, space) for space in ("pixels", "thousand")]
            if (answer := answer_of(scene, schema, (world.SIDE, world.SIDE), 1, rng)) is not None:
                corpus.append(answer)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, min_frequency=2, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )


def build_policy(family: str) -> models.Policy:
    """A tiny Qwen with random weights, through the same classes and processors as the real ones (1.8 M parameters; the
    Qwen3-VL 2.1 M)."""
    import transformers as hf

    tokenizer = build_tokenizer()
    names = ("vision_start", "vision_end", "image_pad", "video_pad", "im_end", "endoftext")
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names}
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=ids["endoftext"],
        eos_token_id=ids["im_end"],
        pad_token_id=ids["endoftext"],
    )
    vision = dict(
        depth=3,
        hidden_size=128,
        num_heads=4,
        out_hidden_size=128,
        spatial_merge_size=2,
        temporal_patch_size=2,
        in_channels=3,
    )
    tokens = dict(
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )
    if family == "qwen2_5_vl":
        text |= dict(rope_parameters={"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0})
        vision |= dict(
            patch_size=14, intermediate_size=256, window_size=112, fullatt_block_indexes=[0, 1, 2], tokens_per_second=2
        )
        config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
        processor_class = hf.Qwen2_5_VLProcessor
    else:
        rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True, "rope_theta": 10000.0}
        text |= dict(head_dim=32, rope_parameters=rope)
        vision |= dict(patch_size=16, intermediate_size=256, num_position_embeddings=64, deepstack_visual_indexes=[0])
        config = hf.Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)
        processor_class = hf.Qwen3VLProcessor
    # Weights of variance 1 / width; the libraries' 0.02 suits widths of thousands, and here starves every layer for a
    # thousand steps.
    for part in (config, config.text_config, config.vision_config):
        part.initializer_range = 0.08
    vlm = hf.AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    # Numbers that are near each other look alike from the start: each dimension is a wave along them.
    rng = torch.Generator().manual_seed(0)
    (side, _), step = writes_in(family)
    numbers = torch.arange(0, side + 1, step)
    waves = torch.rand(text["hidden_size"], generator=rng) * 12 / side  # up to two periods across the picture
    phases = torch.rand(text["hidden_size"], generator=rng) * 2 * np.pi
    places = tokenizer.convert_tokens_to_ids([str(n) for n in numbers.tolist()])
    vlm.get_input_embeddings().weight.data[places] = 0.11 * torch.cos(numbers[:, None] * waves + phases)
    vlm.generation_config.eos_token_id = ids["im_end"]
    vlm.generation_config.pad_token_id = ids["endoftext"]
    image_processor = hf.Qwen2VLImageProcessor(patch_size=vision["patch_size"], temporal_patch_size=2, merge_size=2)
    if family == "qwen3_vl":  # the family's own normalisation
        image_processor.image_mean = image_processor.image_std = [0.5, 0.5, 0.5]
    video = hf.Qwen2VLVideoProcessor() if family == "qwen2_5_vl" else hf.Qwen3VLVideoProcessor()
    processor = processor_class(image_processor, tokenizer, video, chat_template=CHAT_TEMPLATE)
    return models.Policy(vlm, processor, image_size=IMAGE_SIZE[family])


def thought_of(scene: dict, schema: str) -> str:
    """What the miniature thinks: how many shapes there are, and what the ones meant look like."""
    objects = left_to_right(scene, scene["targets"])
    named = [f"{o['color']} {o['shape']}" for o in objects] or ["nothing that fits"]
    seen = ", ".join(f"<look>{n}</look>" if schema == "drseg" else n for n in named)
    return f"There are {len(scene['objects'])} shapes. I see {seen}."


def left_to_right(scene: dict, indices: Sequence[int] | None = None) -> list[dict]:
    """The scene's objects, or those of these indices."""
    chosen = scene["objects"] if indices is None else [scene["objects"][i] for i in sorted(indices)]
    return sorted(chosen, key=lambda o: o["center"][0])


def on_grid(xy, scene: dict, frame: tuple[int, int], step: int) -> np.ndarray:
    """Coordinates of the picture in `frame`, to the nearest multiple of `step` inside it."""
    size = scene["image"].size
    return (data.to_frame(np.clip(xy, 0, size[0]), size, frame) / step).round() * step


def answer_of(
    scene: dict, schema: str, frame: tuple[int, int], step: int, rng: np.random.Generator, biased: bool = False
) -> str | None:
    """A completion for the scene in `frame`; None if the schema cannot say it.

    biased: boxes and points are moved to the right and down by up to 0.4 of the object's sides, most often by 0.28,
    the box is up to 1.3 times as large, negative points lie anywhere in it; two of three answers that name several
    objects leave one out, and two of five that should say "nothing fits" name something. The thought stays the true
    one, so that it may contradict the answer.
    """
    spec = rewards.SCHEMAS[schema]
    objects = left_to_right(scene, scene["targets"])
    if (len(objects) > 1 and not spec.many) or (not objects and not spec.no_target):
        return None
    if biased and len(objects) > 1 and rng.random() < 0.65:
        del objects[rng.integers(len(objects))]
    if biased and not objects and rng.random() < 0.4:
        objects = [scene["objects"][rng.integers(len(scene["objects"]))]]
    instances = []
    for o in objects:
        box = data.box_of(o["mask"])
        points = data.inscribed_points(o["mask"], len(spec.points)) if spec.points else np.zeros((0, 2))
        negatives = data.background_points(o["mask"], box, len(spec.negatives)) if spec.negatives else np.zeros((0, 2))
        if negatives is None:
            return None
        if biased:
            sides = box[2:] - box[:2]
            moved = rng.triangular(0, 0.28, 0.4) * sides
            looser = np.concatenate([-sides, sides]) * rng.uniform(0, 0.15)
            box, points = box + np.tile(moved, 2) + looser, points + moved
            negatives = rng.uniform(box[:2], box[2:], negatives.shape)
        box, points, negatives = (on_grid(xy, scene, frame, step) for xy in (box, points, negatives))
        instances.append(rewards.Instance(box, points, negatives))
    return rewards.write_answer(instances, schema, thought_of(scene, schema))


def describe(scene: dict, frame: tuple[int, int], step: int) -> str:
    """Everything in the scene, from left to right: the lesson in seeing that goes with the lessons in answering."""
    objects = left_to_right(scene)
    return "; ".join(f"{o['color']} {o['shape']} {box_told(o, scene, frame, step)}" for o in objects)


def box_told(o: dict, scene: dict, frame: tuple[int, int], step: int) -> list[int]:
    return on_grid(data.box_of(o["mask"]), scene, frame, step).astype(int).tolist()


def locate(scene: dict, frame: tuple[int, int], step: int) -> list[tuple[str, str, list[dict]]]:
    """(question, box, [object]) for each object of the scene that its colour and shape name without doubt."""
    names = [f"{o['color']} {o['shape']}" for o in scene["objects"]]
    return [
        (f"Where is the {name}?", str(box_told(o, scene, frame, step)), [o])
        for o, name in zip(scene["objects"], names, strict=True)
        if names.count(name) == 1
    ]


class Lesson(NamedTuple):
    """A question about a picture and its answer, as tokens; `meant`: the objects of the answer, in its order."""

    asked: list[int]
    told: list[int]
    meant: list[dict]


SINGULAR = {"circles": "circle", "triangles": "triangle", "diamonds": "diamond", "crosses": "cross"}


def lookups(lesson: Lesson, objects: list[dict], tokenizer) -> list[tuple[int, int, int, list[dict] | int]]:
    """Where attention should look: (layer, head, place in the lesson, objects of the picture or an earlier place).

        layer 0   head 0: a colour's name at the things of that colour; head 1: a shape's name at the things of that
                  shape; head 2: a shape's name at the colour before it; heads 2 and 3: each coordinate back at the
                  names of its object, colour and shape, and where these are written, back at those of the request
        layer 1   head 0: the last word of the request at the things meant; head 1: each coordinate at its object;
                  head 2: where an object's names are written, at that object
        layer 2   head 0: each coordinate back at its object's shape's name

    "Coordinate" is the place before one, whose state predicts it; those of an answer stand after <answer>. The names
    of an object are those that the answer has written of it, else those of the request.
    """
    start = len(lesson.asked)
    words = [word.lstrip("Ġ") for word in tokenizer.convert_ids_to_tokens(lesson.asked + lesson.told)]
    words = [SINGULAR.get(word, word) for word in words]
    found = []
    # The end of the request's line; the last four tokens are the template's, which has newlines of its own.
    last = words.index("Ċ") - 1 if "Ċ" in words[: start - 4] else start
    for i in range(min(last + 1, start)):
        if words[i] in world.COLORS:
            found.append((0, 0, i, [o for o in objects if o["color"] == words[i]]))
        if words[i] in world.SHAPES:
            found.append((0, 1, i, [o for o in objects if o["shape"] == words[i]]))
    asked, told = (
        [i for i in span if words[i] in world.COLORS and words[i + 1] in world.SHAPES]
        for span in (range(min(last, start)), range(start, len(words) - 1))
    )
    if not lesson.meant:
        return found
    color, shape = (asked[0], asked[0] + 1) if asked else (last, last)  # where the request says what is meant
    if shape < start:
        found.append((1, 0, shape, lesson.meant))
        if asked:
            found.append((0, 2, shape, color))
        for i in told:
            found += [(0, 2, i - 1, color), (0, 3, i - 1, shape), (0, 3, i, shape)]
    for i, o in zip(told, lesson.meant, strict=False):
        found += [(0, 2, i + 1, i), (1, 2, i - 1, [o]), (1, 2, i, [o]), (1, 2, i + 1, [o])]
    after = words.index("<answer>", start) if "<answer>" in words[start:] else start
    numbers = [t for t in range(after, len(words)) if words[t].isdigit()]
    each = len(numbers) // len(lesson.meant)  # coordinates of an object: as many for each
    names = told if len(told) == len(lesson.meant) else asked[:1] * len(lesson.meant)
    for n, t in enumerate(numbers):
        k = n // each
        found.append((1, 1, t - 1, [lesson.meant[k]]))
        if names:
            found += [(0, 2, t - 1, names[k]), (0, 3, t - 1, names[k] + 1), (2, 0, t - 1, names[k] + 1)]
    return found


class Sight(torch.nn.Module):
    """What each image token shows, asked of the vision tower alone: the colour, shape and box of the object that covers
    most of it, and in which of the six comparisons that object wins. For training; nothing of it is kept."""

    def __init__(self, width: int, numbers: int):
        super().__init__()
        self.numbers = numbers
        self.heads = torch.nn.Linear(width, len(world.COLORS) + 1 + len(world.SHAPES) + 1 + 6 + 4 * numbers)

    def forward(self, seen: torch.Tensor, truth: dict[str, torch.Tensor]) -> tuple[torch.Tensor, str]:
        """seen (B, cells, width), truth as seen_truth's, batched -> loss, and what to print of it."""
        parts = [len(world.COLORS) + 1, len(world.SHAPES) + 1, 6, 4 * self.numbers]
        color, shape, wins, box = self.heads(seen).split(parts, -1)
        on = truth["color"] > 0
        box, meant = box[on].view(-1, self.numbers), truth["box"][on].flatten()
        clear = truth["clear"][on]
        loss = F.cross_entropy(color.flatten(0, 1), truth["color"].flatten())
        loss = loss + F.cross_entropy(shape.flatten(0, 1), truth["shape"].flatten())
        loss = loss + 0.5 * F.cross_entropy(box, meant)
        loss = loss + F.binary_cross_entropy_with_logits(wins[on][clear], truth["wins"][on][clear])
        off = (box.argmax(-1) - meant).abs().float().mean().item()
        right = (shape.argmax(-1) == truth["shape"])[on].float().mean().item()
        won = ((wins[on] > 0) == (truth["wins"][on] > 0.5))[clear].float().mean().item()
        return loss, f"shapes {right:.3f}, boxes off by {off:.2f} steps, comparisons {won:.3f}"


def seen_truth(scene: dict, frame: tuple[int, int], step: int) -> dict[str, torch.Tensor]:
    """Of each image token, (36,): colour and shape (0: none); (36, 4) box; (36, 6) comparisons won, and clear."""
    objects = scene["objects"]
    shares = np.stack([coverage([o], SIDE**2) for o in objects])
    owner = shares.argmax(0)
    none = shares.max(0) < 0.15
    colors, shapes = list(world.COLORS), list(world.SHAPES)
    boxes = np.array([np.array(box_told(o, scene, frame, step)) // step for o in objects])
    winners = [winner for _, _, winner in world.comparisons(objects)]
    wins = np.array([[winner == i for winner in winners] for i in range(len(objects))])
    named = lambda key, names: np.array([names.index(o[key]) + 1 for o in objects])  # noqa: E731
    return {
        "color": torch.tensor(np.where(none, 0, named("color", colors)[owner])),
        "shape": torch.tensor(np.where(none, 0, named("shape", shapes)[owner])),
        "box": torch.tensor(boxes[owner]),
        "wins": torch.tensor(wins[owner], dtype=torch.float32),
        "clear": torch.tensor([winner is not None for winner in winners]).expand(SIDE**2, 6),
    }


def train_sight(policy: models.Policy, family: str, steps: int, batch: int, lr: float, scenes: list[dict]) -> None:
    """The vision tower alone learns to see: what each of its tokens shows."""
    rng = np.random.default_rng(3)
    frame, grid = writes_in(family)
    visual = policy.vlm.model.visual
    sight = Sight(policy.vlm.config.text_config.hidden_size, int(frame[0] // grid) + 1)
    optimizer = torch.optim.AdamW([*visual.parameters(), *sight.parameters()], lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(steps))
    truths = [seen_truth(s, frame, grid) for s in tqdm(scenes, desc="what is seen", mininterval=5)]
    bar = tqdm(range(steps), desc="seeing", mininterval=5)
    for step in bar:
        chosen = rng.integers(len(scenes), size=batch)
        inputs = policy.encode([scenes[i]["image"] for i in chosen], [""] * batch).inputs
        seen = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        truth = {k: torch.stack([truths[i][k] for i in chosen]) for k in truths[0]}
        loss, told = sight(seen.view(batch, SIDE**2, -1), truth)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(visual.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % 100 == 0:
            tqdm.write(f"seeing, step {step + 1}: loss {loss.item():.3f}, {told}")


def warm_cosine(steps: int):
    """The rate's factor at a step: up over 100 steps, then down to a twentieth along a cosine."""
    return lambda s: min(1, (s + 1) / 100) * (0.05 + 0.95 * (1 + np.cos(np.pi * s / steps)) / 2)


def watch_attention(policy: models.Policy) -> dict[int, tuple[torch.Tensor, torch.Tensor, float]]:
    """From now on each forward leaves here, per text layer, its rotated queries and keys (B, heads, L, d) and their
    scale: torch's fused attention returns no weights, attention_loss computes the few that it needs again."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    kept = {}

    def attend(module, query, key, value, attention_mask, scaling, **rest):
        kept[module.layer_idx] = query, key, scaling
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)

    AttentionInterface.register("watched", attend)
    AttentionMaskInterface.register("watched", sdpa_mask)
    policy.vlm.set_attn_implementation({"text_config": "watched"})
    return kept


def attention_loss(
    kept: dict, rows: models.Rows, wanted: list[tuple[int, int, int, int, torch.Tensor]]
) -> torch.Tensor:
    """-log of the attention that goes where it should, mean over each layer's lookups, summed over the layers.

    wanted: (row, layer, head, place in the row, weight (L,) in [0, 1] of each place to look at).
    """
    loss = torch.zeros((), device=rows.ids.device)
    for layer, (query, key, scaling) in kept.items():
        chosen = [(r, h, at, weight) for r, its_layer, h, at, weight in wanted if its_layer == layer]
        if not chosen:
            continue
        row, head, at = torch.tensor([c[:3] for c in chosen], device=rows.ids.device).T
        shared = query.shape[1] // key.shape[1]  # query heads per key head
        score = torch.einsum("nd,nld->nl", query[row, head, at], key[row, head // shared]) * scaling
        attention = score.masked_fill(~rows.visible[row, 0, at], float("-inf")).softmax(-1)
        found = (attention * torch.stack([c[3] for c in chosen])).sum(-1)
        loss = loss - (found + 1e-3).log().mean()  # bounded where nothing is looked at, or nothing is there to see
    return loss


def lessons_about(scene: dict, family: str, tokenizer, rng: np.random.Generator, biased: bool) -> list[Lesson]:
    """Five about one picture: up to two in seeing (none where biased), else answers in a format drawn by SCHEMA_MIX."""
    frame, grid = writes_in(family)

    def lesson(question: str, answer: str, meant: list[dict]) -> Lesson:
        asked = tokenizer(question + "<|im_end|>\n<|im_start|>assistant\n").input_ids
        return Lesson(asked, tokenizer(answer + "<|im_end|>").input_ids, meant)

    places = locate(scene, frame, grid)
    its = [lesson(*places[rng.integers(len(places))])] if places and not biased else []
    if rng.random() < 0.25 and not biased:
        its.append(lesson(DESCRIBE, describe(scene, frame, grid), left_to_right(scene)))
    while len(its) < 5:
        query, _, targets = world.toy_query(rng, scene["objects"])
        asked = scene | {"query": query, "targets": targets}
        schema = str(rng.choice(list(SCHEMA_MIX), p=list(SCHEMA_MIX.values())))
        if (answer := answer_of(asked, schema, frame, grid, rng, biased)) is not None:
            prompt = data.build_prompt(query, schema, data.FAMILIES[family])
            its.append(lesson(prompt, answer, left_to_right(scene, targets)))
    return its


def train_answers(
    policy: models.Policy,
    family: str,
    out: Path,
    steps: int,
    lr: float,
    scenes: list[dict],
    biased: bool,
) -> None:
    """Supervised: next-token loss, and attention told where to look, through Policy.forward and the same packing as
    GRPO's update. A step has PICTURES pictures with their lessons."""
    rng = np.random.default_rng(2 if biased else 1)
    frame, grid = writes_in(family)
    sight = Sight(policy.vlm.config.text_config.hidden_size, int(frame[0] // grid) + 1)
    learning = [*policy.parameters(), *sight.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(steps))
    kept = watch_attention(policy)
    seen = []
    hook = policy.vlm.model.visual.register_forward_hook(lambda module, given, found: seen.append(found.pooler_output))
    bar = tqdm(range(steps), desc="bias" if biased else "answers", mininterval=5)
    log = []
    for step in bar:
        chosen = [scenes[i] for i in rng.integers(len(scenes), size=PICTURES)]
        lessons = [lessons_about(scene, family, policy.processor.tokenizer, rng, biased) for scene in chosen]
        # The lessons about a picture share it: [picture | question, answer | question, answer | ...] in one packed row.
        prompts = policy.encode([s["image"] for s in chosen], [""] * len(chosen))
        cut = prompts.inputs["input_ids"][0].tolist().index(policy.vlm.config.vision_end_token_id) + 1
        prompts.inputs |= {k: prompts.inputs[k][..., :cut] for k in ("input_ids", "attention_mask", "position_ids")}
        rows = policy.pack(
            prompts,
            [(i, [torch.tensor(x.asked + x.told) for x in its]) for i, its in enumerate(lessons)],
        )
        answered = torch.tensor(
            [flag for its in lessons for x in its for flag in [False] * len(x.asked) + [True] * len(x.told)]
        )
        rows.source = rows.source[answered]
        rows.target = rows.target[answered]
        seen.clear()
        logp, _, _ = policy(rows)
        loss = -logp.mean()
        if not biased:
            wanted = where_to_look(policy, rows, chosen, lessons, cut)
            truth = [seen_truth(s, frame, grid) for s in chosen]
            truth = {k: torch.stack([t[k] for t in truth]) for k in truth[0]}
            sight_loss, _ = sight(seen[0].view(PICTURES, SIDE**2, -1), truth)
            # hints: the words' loss stays the larger
            loss = loss + 0.1 * attention_loss(kept, rows, wanted) + 0.1 * sight_loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        log.append(-logp.mean().item())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{np.mean(log[-50:]):.3f}")
        if (step + 1) % 300 == 0 or step + 1 == steps:
            save_policy(policy, out)
            tqdm.write(f"{family} step {step + 1}: loss {np.mean(log[-100:]):.4f}; {probe(policy, family)}")
    hook.remove()


def save_policy(policy: models.Policy, out: Path) -> None:
    """In half precision: half the megabytes; what is tied stays tied."""
    state = policy.state_dict()
    half = {v.data_ptr(): v.half() for v in state.values()}
    policy.save(out, {k: half[v.data_ptr()] for k, v in state.items()})


def train_policy(family: str, out: Path, stages: dict[str, int], lr: float, scenes: int, resume: bool) -> None:
    """The stages in order, each with its steps: "see", "answer", "bias". With `resume` from the weights in `out`, on
    other pictures."""
    torch.manual_seed(0)
    drawn = [world.toy_scene(101 if resume else 100, i) for i in tqdm(range(scenes), desc="scenes", mininterval=5)]
    size = IMAGE_SIZE[family]
    policy = models.load_policy(str(out), image_size=size) if resume else build_policy(family)
    policy.float().train().requires_grad_(True)
    print(f"{family}: {sum(p.numel() for p in policy.parameters()) / 1e6:.2f} M parameters")
    if steps := stages.get("see"):
        train_sight(policy, family, steps, 32, lr, drawn)
        save_policy(policy, out)
    if steps := stages.get("answer"):
        train_answers(policy, family, out, steps, lr, drawn, biased=False)
    if steps := stages.get("bias"):
        train_answers(policy, family, out, steps, lr / 4, drawn, biased=True)


def where_to_look(policy: models.Policy, rows: models.Rows, scenes: list[dict], lessons: list, cut: int) -> list[tuple]:
    """The lookups of all lessons in packed rows, for attention_loss: (row, layer, head, place, weight of each place).

    scenes: the rows' pictures; lessons: theirs, in the order in which they were packed behind `cut` prompt tokens.
    """
    seen_at = (rows.ids[0] == policy.vlm.config.image_token_id).nonzero()[:, 0]
    wanted = []
    for r, (scene, its) in enumerate(zip(scenes, lessons, strict=True)):
        start = cut
        for x in its:
            for layer, head, at, there in lookups(x, scene["objects"], policy.processor.tokenizer):
                weight = torch.zeros(rows.ids.shape[1], device=rows.ids.device)
                if isinstance(there, int):
                    weight[start + there] = 1
                elif there:
                    weight[seen_at] = torch.tensor(coverage(there, len(seen_at)), device=rows.ids.device)
                wanted.append((r, layer, head, start + at, weight))
            start += len(x.asked) + len(x.told)
    return wanted


def coverage(objects: list[dict], cells: int) -> np.ndarray:
    """(cells,) float32: how well each image token shows the objects; 1 where they cover a third of it or more."""
    mask = np.any([o["mask"] for o in objects], 0)
    side = round(cells**0.5)
    # The picture is square and resized to whole tokens; nearest sampling at 28 points per token is fine enough.
    at = (np.arange(side * 28) + 0.5) * len(mask) / (side * 28)
    fine = mask[np.ix_(at.astype(int), at.astype(int))]
    share = fine.reshape(side, 28, side, 28).mean((1, 3))
    return np.clip(share * 3, 0, 1).reshape(-1).astype(np.float32)


@torch.no_grad()
def probe(policy: models.Policy, family: str) -> str:
    """Greedy box IoU on held-out pictures (1 for a right "nothing fits") per kind of request, and one of the texts."""
    schema, n = "genseg", 160
    picked = [world.toy_scene(2, i) for i in range(n)]
    texts = []
    for at in range(0, n, 32):
        part = picked[at : at + 32]
        asked = [data.build_prompt(s["query"], schema, data.FAMILIES[family]) for s in part]
        prompts = policy.encode([s["image"] for s in part], asked)
        rollout = grpo.sample(
            policy.vlm,
            prompts.inputs,
            torch.zeros(len(part), 1, 160),
            num_generations=1,
            max_new_tokens=160,
            temperature=0,
            eos_token_id=policy.eos_token_id,
            banned_ids=policy.banned_ids,
        )
        texts += policy.decode(rollout.ids[:, 0], rollout.mask[:, 0])
    frame = data.model_frame(family, prompts.resized[0])
    ious: dict[str, list[float]] = {}
    parsed = 0
    for text, s in zip(texts, picked, strict=True):
        answer = rewards.parse_answer(text, schema).rescaled(frame, s["image"].size)
        parsed += answer.answer_ok
        truth = [data.box_of(s["objects"][i]["mask"]) for i in s["targets"]]
        each = [max([rewards.box_iou(b, o.box) for o in answer.instances] or [0.0]) for b in truth]
        ious.setdefault(s["kind"], []).append(float(np.mean(each)) if truth else float(answer.no_target))
    told = ", ".join(f"{kind} {np.mean(v):.3f}" for kind, v in ious.items())
    return f"box IoU {np.mean(sum(ious.values(), [])):.3f} ({told}), parsed {parsed / n:.2f} | {texts[0]}"


def sam2_prompts(rng: np.random.Generator, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What SAM2 is given for N objects, masks (N, H, W), in pixels: boxes (N, 4), points (N, k, 2), labels (N, k).

    Much as SAM's authors trained theirs: a box with noise of a tenth of its sides; points on the object, and some
    beside it. Which kinds come is the same for all N, so that nothing is padded.
    """
    size = masks.shape[-1]
    boxes = np.stack([data.box_of(m) for m in masks])
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    boxes = (boxes + rng.normal(0, 0.1, boxes.shape) * sides).clip(0, size)
    on, beside = [(0, 0), (0, 0), (1, 0), (1, 0), (2, 0), (2, 2)][rng.integers(6)]
    points = np.zeros((len(masks), on + beside, 2))
    for i, mask in enumerate(masks):
        x1, y1, x2, y2 = data.box_of(mask).astype(int)
        around = np.zeros_like(mask)  # beside it, but near: where a click means something
        margin = int((x2 - x1) / 4)
        around[max(y1 - margin, 0) : y2 + margin, max(x1 - margin, 0) : x2 + margin] = True
        for j in range(on + beside):
            places = np.flatnonzero(mask if j < on else around & ~mask)
            points[i, j] = np.array(np.unravel_index(rng.choice(places), mask.shape))[::-1] + 0.5
    return boxes, points, np.tile(np.int32([1] * on + [0] * beside), (len(masks), 1))


def corrective_clicks(found: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where (N, H, W) masks err most: points (N, 1, 2), the middle of the widest error, and labels (N, 1): 1 where
    something is missing, 0 where something is too much. Where nothing errs, the middle of the object."""
    points = np.zeros((len(masks), 1, 2))
    labels = np.zeros((len(masks), 1), dtype=np.int32)
    for i, (got, mask) in enumerate(zip(found, masks, strict=True)):
        error = got ^ mask if (got ^ mask).any() else mask
        depth = distance_transform_edt(np.pad(error, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        points[i, 0], labels[i, 0] = (x + 0.5, y + 0.5), mask[y, x]
    return points, labels


def train_sam2(out: Path, steps: int, batch: int, lr: float, scenes: int, device: str, resume: bool) -> None:
    """SAM2 as SAM was trained: a noisy box and points, a mask, a click where it errs, a second mask. Dice and
    cross-entropy on its single mask and on the best of its three proposals, L1 on its predicted IoUs.

    batch: objects per step, two to a picture.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(2)
    net = models.load_segmenter(str(out)).requires_grad_(True) if resume else models.build_segmenter(SAM2_CONFIG)
    net = net.to(device).train()
    print(f"sam2: {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters")
    scenes_drawn = [world.toy_scene(200, i) for i in tqdm(range(scenes), desc="scenes", mininterval=5)]
    scenes_drawn = [s for s in scenes_drawn if len(s["objects"]) > 1]
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01)
    # up over 50 steps, then full, then down to a twentieth over the second half
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 50, 0.05 + 2 * (1 - s / steps)))
    bar = tqdm(range(steps), desc="sam2", mininterval=5)
    log = []
    unit = lambda a: torch.tensor(a / world.SIDE, dtype=torch.float32, device=device)  # noqa: E731
    for step in bar:
        chosen = [scenes_drawn[i] for i in rng.integers(len(scenes_drawn), size=batch // 2)]
        objects = [o for s in chosen for o in rng.permutation(np.array(s["objects"], dtype=object))[:2]]
        masks = np.stack([o["mask"] for o in objects])
        truth = torch.tensor(masks, device=device)[:, None].float()
        boxes, points, labels = sam2_prompts(rng, masks)
        emb = net.embed([s["image"] for s in chosen])
        index = torch.arange(len(objects), device=device) // 2
        loss = torch.zeros((), device=device)
        for again in (False, True):
            tokens = net.prompt_tokens(unit(boxes), unit(points), torch.tensor(labels, device=device))
            logits, ious = net.decode(emb, index, tokens)
            logits = F.interpolate(logits, (world.SIDE, world.SIDE), mode="bilinear")
            each = models.mask_loss(logits.flatten(0, 1), truth[:, 0].repeat_interleave(4, 0)).view(len(objects), 4)
            with torch.no_grad():
                hit = logits > 0
                real = (hit & (truth > 0)).sum((-1, -2)) / (hit | (truth > 0)).sum((-1, -2)).clamp(min=1)
            # all proposals learn a little, the best one most: no head dies
            loss = loss + each[:, 0].mean() + each[:, 1:].min(-1).values.mean() + 0.1 * each[:, 1:].mean()
            loss = loss + F.l1_loss(ious, real)
            if again:
                break
            best = hit[torch.arange(len(objects)), 1 + real[:, 1:].argmax(-1)].cpu().numpy()
            clicks, signs = corrective_clicks(best, masks)
            points, labels = np.concatenate([points, clicks], 1), np.concatenate([labels, signs], 1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        log.append(real[:, 1:].max(-1).values.mean().item())
        if step % 20 == 0:
            bar.set_postfix(iou=f"{np.mean(log[-50:]):.3f}")
        if (step + 1) % 500 == 0:
            save_segmenter(net, out)
            tqdm.write(f"sam2 step {step + 1}: {probe_sam2(net.eval(), 40)}")
            net.train()
    net.eval()
    save_segmenter(net, out)
    print(f"sam2: IoU on held-out objects: {probe_sam2(net)}")


def save_segmenter(net: models.Segmenter, out: Path) -> None:
    """The folder that models.load_segmenter reads, weights in half precision: half the megabytes."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / SAM2_CONFIG.name).exists():
        shutil.copy(SAM2_CONFIG, out)
    halves = {name: value.detach().cpu().half().contiguous() for name, value in net.state_dict().items()}
    save_file(halves, out / "segmenter.safetensors")


def prompts_for(mask: np.ndarray) -> dict[str, rewards.Instance]:
    """What SAM2 may be given for an object: its true box, looser ones, moved ones (right and down, by a part of its
    sides), each alone, with two points on the object, and with two beside it as well."""
    box = data.box_of(mask)
    sides = np.tile(box[2:] - box[:2], 2)
    outward = np.array([-1, -1, 1, 1])
    boxes = {"true box": box}
    boxes |= {f"{f} times as large": box + outward * sides * (f - 1) / 2 for f in (1.3, 1.6)}
    boxes |= {f"moved by {m}": box + m * sides for m in (0.15, 0.3, 0.45)}
    on = data.inscribed_points(mask, 2)
    beside = data.background_points(mask, box, 2)
    found = {}
    for name, given in boxes.items():
        found[name] = rewards.Instance(given)
        found[f"{name}, 2 points on it"] = rewards.Instance(given, on)
        if beside is not None:
            found[f"{name}, 2 on, 2 beside"] = rewards.Instance(given, on, beside)
    return found


def probe_sam2(net: models.Segmenter, scenes: int = 100) -> dict[str, float]:
    """Mean IoU over the objects of held-out pictures, for each of prompts_for."""
    ious: dict[str, list[float]] = {}
    for i in tqdm(range(scenes), desc="held out", mininterval=5):
        scene = world.toy_scene(2, i)
        seen = net.embed([scene["image"]])
        for mask in (o["mask"] for o in scene["objects"]):
            given = prompts_for(mask)
            found = net.union(seen, [0] * len(given), [[one] for one in given.values()])
            for name, got in zip(given, found, strict=True):
                ious.setdefault(name, []).append(models.mask_iou(got.cpu(), torch.tensor(mask)))
    return {name: round(float(np.mean(values)), 3) for name, values in ious.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["sam2", *IMAGE_SIZE], help="sam2, qwen2_5_vl, qwen3_vl")
    parser.add_argument("--out", default="toy")
    parser.add_argument("--steps", type=int, default=6000, help="of sam2")
    parser.add_argument("--stages", default="see=3000,answer=3600,bias=300", help="of a policy, and their steps")
    parser.add_argument("--scenes", type=int, default=12000, help="different pictures (sam2: at most 4000)")
    parser.add_argument("--lr", type=float, default=0, help="0: sam2 5e-4, a policy 1e-3")
    parser.add_argument("--resume", action="store_true", help="go on from the weights in --out, with a fresh schedule")
    parser.add_argument("--device", default="cpu", help="of sam2; a policy is taught on the CPU")
    args = parser.parse_args()
    if unknown := set(args.what) - {"sam2", *IMAGE_SIZE}:
        parser.error(f"no network is called {', '.join(sorted(unknown))}")
    stages = {name: int(steps) for name, steps in (part.split("=") for part in args.stages.split(","))}
    if unknown := set(stages) - {"see", "answer", "bias"}:
        parser.error(f"no stage is called {', '.join(sorted(unknown))}")
    for what in args.what:
        start = time.time()
        out = Path(args.out, what)
        if what == "sam2":
            train_sam2(out, args.steps, 32, args.lr or 5e-4, min(args.scenes, 4000), args.device, args.resume)
        else:
            train_policy(what, out, stages, args.lr or 1e-3, args.scenes, args.resume)
        print(f"{what}: {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
