# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""The miniature: tiny networks, trained from nothing on drawn shapes, so that every recipe runs on a laptop's CPU.

    python -m toy.make                # both, into toy/ (about half an hour on 2 cores)
    python -m toy.make sam2           # or one of: sam2, qwen2_5_vl

    toy/sam2         SAM2 from the sam2 package's own classes, 128 x 128 input (segmenter.yaml there says how: keep it)
    toy/qwen2_5_vl   Qwen2.5-VL with a small tokenizer; it knows the answer format of every recipe, genseg's included

The shipped qwen2_5_vl was made by this command as it stands. sam2 was made in stages, partly by older versions of this
file: as above, then `--resume --steps 700` and `--resume --steps 450 --lr 2.5e-4`. About half of the points beside a
shape that it then saw with loose boxes lay on what it was to mask. Trained anew with that mended, 2,900 steps, it gains
a little by points on boxes 1.6 times too large (IoU 0.482, two points on the object 0.501, two beside it as well 0.511;
shipped: 0.472, 0.469, 0.462), and masks true boxes worse (0.830; shipped: 0.904). So the old one stays (probe_sam2).

The policy learns to find what a request names, and the answer formats, but on labels made imprecise on purpose: the
boxes of an answer are enlarged by a random factor of 1 to 1.8 and jittered. So it sees shapes well and boxes them
badly, and reinforcement learning has something to improve that it can measure. (A policy that simply sees badly is no
use: GRPO sharpens what is there, it does not teach to see.)

To choose by the words is the hard part. 1,800 steps of these lessons alone left both boxes right in 2 of 60 pictures
asked for two of their shapes: the policy boxed the same one twice. So attention is told where to look (`lookups`): a
colour's name at the things of that colour, a shape's name at the things of that shape, a coordinate at the thing that
it belongs to. Then 600 steps made it 45 of 60. `python -m studies.words toy/qwen2_5_vl` counts such pairs
on test pictures, by their masks.

`python -m toy.make qwen3_vl` trains a Qwen3-VL of the same size. It is not shipped: it writes 0-1000, where each of
1,001 numbers is a token to be learned instead of 113. Without the lookups it came to a box IoU of 0.21 after 2,400
steps; with them, and with every twentieth number alone, to 0.47 (docs/miniature.md). So the genseg recipes start from
the Qwen2.5-VL in miniature.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
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
IMAGE_SIZE = {"qwen2_5_vl": 112, "qwen3_vl": 128}
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
    names = "|".join(
        [
            *world.COLORS,
            *world.SHAPES,
            "the",
            "all",
            "thing",
            "shapes?",
            "largest",
            "smallest",
            "left",
            "right",
            "top",
            "bottom",
        ]
    )
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
        corpus += [DESCRIBE, describe(scene, (112, 112))]
        corpus += [text for asked, told, _ in locate(scene, (112, 112)) for text in (asked, told)]
        for schema in SCHEMA_MIX:
            corpus += [data.build_prompt(scene["query"], schema, space) for space in ("pixels", "thousand")]
            if (answer := imprecise_answer(scene, schema, (112, 112), rng)) is not None:
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
    """A tiny Qwen with random weights, through the same classes and processors as the real ones (1.6 M parameters)."""
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
        depth=2,
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
            patch_size=14, intermediate_size=256, window_size=112, fullatt_block_indexes=[0, 1], tokens_per_second=2
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
    objects = [scene["objects"][i] for i in scene["targets"]]
    named = [f"{o['color']} {o['shape']}" for o in objects] or ["nothing that fits"]
    seen = ", ".join(f"<look>{n}</look>" if schema == "drseg" else n for n in named)
    return f"There are {len(scene['objects'])} shapes. I see {seen}."


def left_to_right(scene: dict, indices) -> list[int]:
    return sorted(indices, key=lambda i: (scene["objects"][i]["center"][0], i))


def imprecise_answer(scene: dict, schema: str, frame: tuple[int, int], rng: np.random.Generator) -> str | None:
    """A completion for the scene, its boxes enlarged by 1 to 1.8 and jittered by 2 px, in `frame`; None if the schema
    cannot say it."""
    spec = rewards.SCHEMAS[schema]
    if (len(scene["targets"]) > 1 and not spec.many) or (not scene["targets"] and not spec.no_target):
        return None
    size = scene["image"].width
    instances = []
    factor = rng.uniform(1, 1.8)
    for i in left_to_right(scene, scene["targets"]):
        o = scene["objects"][i]
        center, half = o["center"], o["radius"] * factor
        box = np.concatenate([center - half, center + half]) + rng.uniform(-2, 2, 4)
        points = [center + rng.uniform(-0.4, 0.4, 2) * o["radius"] for _ in spec.points]
        negatives = []
        for _ in spec.negatives:  # often wrong: anywhere in the box
            negatives.append(rng.uniform(np.maximum(box[:2], 0), np.minimum(box[2:], size - 1)))
        scale = lambda xy: data.to_frame(np.clip(xy, 0, size), (size, size), frame)  # noqa: E731
        instances.append(rewards.Instance(scale(box), [scale(p) for p in points], [scale(p) for p in negatives]))
    return rewards.write_answer(instances, schema, thought_of(scene, schema))


def describe(scene: dict, frame: tuple[int, int]) -> str:
    """Everything in the scene, exactly, from left to right: the lesson in seeing that goes with the lessons in
    answering."""
    parts = []
    for o in (scene["objects"][i] for i in left_to_right(scene, range(len(scene["objects"])))):
        box = data.to_frame(data.box_of(o["mask"]), scene["image"].size, frame).round().astype(int).tolist()
        parts.append(f"{o['color']} {o['shape']} {box}")
    return "; ".join(parts)


def locate(scene: dict, frame: tuple[int, int]) -> list[tuple[str, str, dict]]:
    """(question, exact box, object) for each object of the scene that its colour and shape name without doubt."""
    names = [f"{o['color']} {o['shape']}" for o in scene["objects"]]
    lessons = []
    for o, name in zip(scene["objects"], names, strict=True):
        if names.count(name) == 1:
            box = data.to_frame(data.box_of(o["mask"]), scene["image"].size, frame).round().astype(int).tolist()
            lessons.append((f"Where is the {name}?", str(box), o))
    return lessons


class Lesson(NamedTuple):
    """A question about a picture and its answer, as tokens; `meant`: the object asked for, where it is just one."""

    asked: list[int]
    told: list[int]
    meant: dict | None


def lookups(lesson: Lesson, objects: list[dict], tokenizer) -> list[tuple[int, int, int, list[dict] | int]]:
    """Where attention should look: (layer, head, place in the lesson, objects of the picture or an earlier place).

        layer 0   head 0: a colour's name at the things of that colour; head 1: a shape's name at the things of that
                  shape; head 2: the shape's name, and each coordinate, back at the colour's name; head 3: each
                  coordinate back at the shape's name
        layer 1   head 0: the shape's name at the object meant; head 1: each coordinate at it
        layer 2   head 0: each coordinate back at the shape's name

    "Coordinate" is the place before one, whose state predicts it; those of an answer stand after <answer>. Requests
    without the two names ("the largest shape") have their coordinates look at the object, and no more.
    """
    if lesson.meant is None:
        return []
    found = []
    start = len(lesson.asked)
    words = [word.lstrip("Ġ") for word in tokenizer.convert_ids_to_tokens(lesson.asked + lesson.told)]
    named = [i for i in range(start - 1) if words[i] in world.COLORS and words[i + 1] in world.SHAPES][:1]
    for i in named:
        found += [
            (0, 0, i, [o for o in objects if o["color"] == words[i]]),
            (0, 1, i + 1, [o for o in objects if o["shape"] == words[i + 1]]),
            (0, 2, i + 1, i),
            (1, 0, i + 1, [lesson.meant]),
        ]
    after = words.index("<answer>", start) if "<answer>" in words[start:] else start
    for at in (t - 1 for t in range(after + 1, len(words)) if words[t].isdigit()):
        found.append((1, 1, at, [lesson.meant]))
        for i in named:
            found += [(0, 2, at, i), (0, 3, at, i + 1), (2, 0, at, i + 1)]
    return found


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


def train_policy(
    family: str, out: Path, steps: int, batch: int, lr: float, scenes: int, device: str, resume: bool
) -> None:
    """Supervised: next-token loss, and attention told where to look, through Policy.forward and the same packing as
    GRPO's update. For the first 4/7 of the steps only places and descriptions, exact; then (with `resume` from the
    start) imprecise answers as well. batch: lessons per step, about four to a picture, in the first phase two.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(2 if resume else 1)
    loaded = models.load_policy(str(out), image_size=IMAGE_SIZE[family]) if resume else build_policy(family)
    policy = loaded.to(device)
    print(
        f"{family}: {sum(p.numel() for p in policy.parameters()) / 1e6:.2f} M parameters, "
        f"{len(policy.processor.tokenizer)} tokens"
    )
    schemas, odds = zip(*SCHEMA_MIX.items(), strict=True)
    space = data.FAMILIES[family]
    tokenizer = policy.processor.tokenizer
    frame = data.model_frame(family, (IMAGE_SIZE[family],) * 2)
    scenes_drawn = [
        world.toy_scene(101 if resume else 100, i) for i in tqdm(range(scenes), desc="scenes", mininterval=5)
    ]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    # up over 100 steps, then down to a twentieth along a cosine
    warm = lambda s: min(1, (s + 1) / 100) * (0.05 + 0.95 * (1 + np.cos(np.pi * s / steps)) / 2)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm)
    kept = watch_attention(policy)

    def lesson(question: str, answer: str, meant: dict | None) -> Lesson:
        asked = tokenizer(question + "<|im_end|>\n<|im_start|>assistant\n").input_ids
        return Lesson(asked, tokenizer(answer + "<|im_end|>").input_ids, meant)

    bar = tqdm(range(steps), desc=family, mininterval=5)
    log = []
    for step in bar:
        seeing = not resume and step < steps * 4 / 7
        chosen = []
        lessons = []
        while len(chosen) < batch // (2 if seeing else 4):
            scene = scenes_drawn[rng.integers(scenes)]
            its = [lesson(DESCRIBE, describe(scene, frame), None)]
            its += [lesson(*place) for place in locate(scene, frame)]
            for _ in range(0 if seeing else 3):
                query, _, targets = world.toy_query(rng, scene["objects"])
                asked = scene | {"query": query, "targets": targets}
                schema = str(rng.choice(schemas, p=odds))
                if (answer := imprecise_answer(asked, schema, frame, rng)) is not None:
                    meant = scene["objects"][targets[0]] if len(targets) == 1 else None
                    its.append(lesson(data.build_prompt(query, schema, space), answer, meant))
            chosen.append(scene)
            lessons.append(its)
        # The lessons about a picture share it: [picture | question, answer | question, answer | ...] in one packed row.
        prompts = policy.encode([s["image"] for s in chosen], [""] * len(chosen))
        cut = prompts.inputs["input_ids"][0].tolist().index(policy.vlm.config.vision_end_token_id) + 1
        prompts.inputs |= {k: prompts.inputs[k][..., :cut] for k in ("input_ids", "attention_mask", "position_ids")}
        rows = policy.pack(
            prompts,
            [(i, [torch.tensor(x.asked + x.told, device=device) for x in its]) for i, its in enumerate(lessons)],
        )
        answered = torch.tensor(
            [flag for its in lessons for x in its for flag in [False] * len(x.asked) + [True] * len(x.told)],
            device=device,
        )
        rows.source = rows.source[answered]
        rows.target = rows.target[answered]
        wanted = where_to_look(policy, rows, chosen, lessons, cut)
        logp, _, _ = policy(rows)
        loss = -logp.mean() + 0.1 * attention_loss(kept, rows, wanted)  # a hint: the words' loss stays the larger
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        log.append(-logp.mean().item())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{np.mean(log[-50:]):.3f}")
        if (step + 1) % 400 == 0 or step + 1 == steps:
            state = policy.state_dict()
            half = {v.data_ptr(): v.half() for v in state.values()}  # half the megabytes; what is tied stays tied
            policy.save(out, {k: half[v.data_ptr()] for k, v in state.items()})
            found = [] if seeing else [probe(policy, family, schemas)]
            tqdm.write("; ".join([f"{family} step {step + 1}: loss {np.mean(log[-100:]):.4f}", *found]))


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
def probe(policy: models.Policy, family: str, schemas: tuple[str, ...], n: int = 64) -> str:
    """Greedy box IoU on held-out pictures (1 for a right "nothing fits") and the fraction that parses, per schema; then
    one of the texts."""
    out = []
    for schema in schemas:
        picked = [
            s
            for s in (world.toy_scene(2, i) for i in range(400))
            if imprecise_answer(s, schema, (9, 9), np.random.default_rng(0))  # can the schema say it?
        ][:n]
        prompts = policy.encode(
            [s["image"] for s in picked],
            [data.build_prompt(s["query"], schema, data.FAMILIES[family]) for s in picked],
        )
        rollout = grpo.sample(
            policy.vlm,
            prompts.inputs,
            torch.zeros(len(picked), 1, 200),
            num_samples=1,
            max_new_tokens=200,
            temperature=0,
            eos_token_id=policy.eos_token_id,
            banned_ids=policy.banned_ids,
        )
        texts = policy.decode(rollout.ids[:, 0], rollout.mask[:, 0])
        answers = [
            rewards.parse_answer(t, schema).rescaled(data.model_frame(family, prompts.resized[0]), (112, 112))
            for t in texts
        ]
        ious = []
        for a, s in zip(answers, picked, strict=True):
            truth = [data.box_of(s["objects"][i]["mask"]) for i in s["targets"]]
            if not truth:
                ious.append(float(a.no_target))
            else:
                ious.append(
                    float(np.mean([max([rewards.box_iou(b, o.box) for o in a.instances] or [0.0]) for b in truth]))
                )
        out.append(f"{schema} iou {np.mean(ious):.3f} parsed {np.mean([a.answer_ok for a in answers]):.2f}")
    return "; ".join(out) + f" | {texts[0]}"


def train_sam2(out: Path, steps: int, batch: int, lr: float, scenes: int, device: str, resume: bool) -> None:
    """SAM2 from nothing: dice + cross-entropy on its single mask and the best of its proposals, L1 on its predicted
    IoUs."""
    torch.manual_seed(0)
    rng = np.random.default_rng(2)
    net = models.load_segmenter(str(out)).requires_grad_(True) if resume else models.build_segmenter(SAM2_CONFIG)
    net = net.to(device).train()
    print(f"sam2: {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters")
    scenes_drawn = [world.toy_scene(200, i) for i in tqdm(range(scenes), desc="scenes", mininterval=5)]
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01)
    # up over 50 steps, then full, then down to a twentieth over the second half
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 50, 0.05 + 2 * (1 - s / steps)))
    bar = tqdm(range(steps), desc="sam2", mininterval=5)
    log = []
    for step in bar:
        chosen = [scenes_drawn[i] for i in rng.integers(scenes, size=batch)]
        objects = [s["objects"][rng.integers(len(s["objects"]))] for s in chosen]
        truth = torch.tensor(np.stack([o["mask"] for o in objects]), device=device).float()
        boxes = np.stack([data.box_of(o["mask"]) for o in objects])
        center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        # True boxes alone first: with points at hand from the start it never learns to read a box.
        late = resume or step >= 0.6 * steps
        k = 0 if not late or step % 2 else int(rng.integers(1, 5))
        if late and step % 3:
            # Then boxes as loose as the policy's, and the lesson that what is meant fills its box. The real SAM2
            # forgives a loose box; this one takes it at its word, so that pointing badly costs masks and there is much
            # to gain.
            half = half * rng.uniform(1, 1.9, (batch, 1))
            center = center + rng.uniform(-0.25, 0.25, (batch, 2)) * half
            boxes = np.concatenate([center - half, center + half], 1)
            drawn = [
                world.draw_shape(o["shape"], c, h.max(), 112) for o, c, h in zip(objects, center, half, strict=True)
            ]
            truth = torch.tensor(np.stack(drawn), device=device).float()
        points = np.zeros((batch, k, 2))
        labels = np.zeros((batch, k), dtype=np.int32)
        meant = truth.bool().cpu().numpy()
        for i in range(batch):
            for j in range(k):
                labels[i, j] = rng.random() < 0.6  # on the shape (1) or beside it (0), but near
                ys, xs = np.nonzero(meant[i] if labels[i, j] else ~meant[i])
                near = (np.abs(np.stack([xs, ys], 1) - center[i]) < 1.4 * half[i].max()).all(1)
                pick = rng.choice(np.flatnonzero(near))
                points[i, j] = xs[pick] + 0.5, ys[pick] + 0.5
        emb = net.embed([s["image"] for s in chosen])
        unit = lambda a: torch.tensor(a / 112, dtype=torch.float32, device=device)  # noqa: E731
        tokens = net.prompt_tokens(unit(boxes), unit(points), torch.tensor(labels, device=device))
        logits, ious = net.decode(emb, torch.arange(batch, device=device), tokens)
        logits = F.interpolate(logits, (112, 112), mode="bilinear")
        each = models.mask_loss(logits.flatten(0, 1), truth.repeat_interleave(4, 0)).view(batch, 4)
        with torch.no_grad():
            hit = logits > 0
            real = (hit & (truth[:, None] > 0)).sum((-1, -2)) / (hit | (truth[:, None] > 0)).sum((-1, -2)).clamp(min=1)
        # all proposals learn, the best one most: no head dies
        loss = each[:, 0].mean() + each[:, 1:].min(-1).values.mean() + 0.1 * each[:, 1:].mean() + F.l1_loss(ious, real)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        log.append(real[:, 1:].max(-1).values.mean().item())
        if step % 20 == 0:
            bar.set_postfix(iou=f"{np.mean(log[-50:]):.3f}")
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


def probe_sam2(net: models.Segmenter, scenes: int = 100) -> str:
    """Mean IoU on held-out objects: given true boxes, and boxes 1.6 times as large, without and with points."""
    ious: dict[str, list[float]] = {}
    for i in tqdm(range(scenes), desc="held out", mininterval=5):
        scene = world.toy_scene(2, i)
        seen = net.embed([scene["image"]])
        for mask in (o["mask"] for o in scene["objects"]):
            box = data.box_of(mask)
            on = data.inscribed_points(mask, 2)
            center, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
            loose = np.concatenate([center - 1.6 * half, center + 1.6 * half])
            beside = data.background_points(mask, loose, 2)
            prompts = {"true box": (box, [], []), "loose box": (loose, [], []), "2 points on it": (loose, on, [])}
            prompts |= {} if beside is None else {"and 2 beside it": (loose, on, beside)}
            for name, (given, positive, negative) in prompts.items():
                found = net.union(seen, [0], [[rewards.Instance(given, positive, negative)]])[0]
                ious.setdefault(name, []).append(models.mask_iou(found.cpu(), torch.tensor(mask)))
    return ", ".join(f"{name} {np.mean(values):.3f}" for name, values in ious.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["sam2", "qwen2_5_vl"], help="sam2, qwen2_5_vl, qwen3_vl")
    parser.add_argument("--out", default="toy")
    parser.add_argument("--steps", type=int, default=0, help="0: sam2 1800, a policy 2800")
    parser.add_argument("--batch", type=int, default=0, help="0: sam2 24 pictures, a policy 48 lessons")
    parser.add_argument("--scenes", type=int, default=12000, help="different pictures (sam2: at most 4000)")
    parser.add_argument("--lr", type=float, default=0, help="0: sam2 3e-4, a policy 1e-3")
    parser.add_argument("--resume", action="store_true", help="go on from the weights in --out, with a fresh schedule")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if unknown := set(args.what) - {"sam2", *IMAGE_SIZE}:
        parser.error(f"no network is called {', '.join(sorted(unknown))}")
    for what in args.what:
        start = time.time()
        out = Path(args.out, what)
        if what == "sam2":
            steps = args.steps or 1800
            batch = args.batch or 24
            lr = args.lr or 3e-4
            train_sam2(out, steps, batch, lr, min(args.scenes, 4000), args.device, args.resume)
        else:
            steps = args.steps or 2800
            batch = args.batch or 48
            lr = args.lr or 1e-3
            train_policy(what, out, steps, batch, lr, args.scenes, args.device, args.resume)
        print(f"{what}: {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
