# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""model.py, sampling and packing on tiny random networks of every family, each against a slow twin: one row at a time,
full logits, transformers' own generate, sam2's own predictor."""

import dataclasses
import gc
import json
import re
import shutil
import weakref

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

import data
import grpo
import model as models
import rewards
from toy import make

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
SIZES = [(56, 84), (160, 60), (96, 96)]  # three prompts: pictures of three sizes and shapes ...
TEXTS = ["find it", "find the largest red circle on the left", "all blue things"]  # ... and texts of three lengths


def qwen2_vl(tokenizer) -> models.Policy:
    """The one family that the miniature does not have."""
    ids = {
        n: tokenizer.convert_tokens_to_ids(f"<|{n}|>")
        for n in ("vision_start", "vision_end", "image_pad", "video_pad", "im_end")
    }
    config = hf.Qwen2VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=ids["im_end"],
            rope_parameters={"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
        ),
        vision_config=dict(depth=2, embed_dim=64, hidden_size=128, num_heads=4, mlp_ratio=2, patch_size=14),
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    vlm = hf.AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    processor = hf.Qwen2VLProcessor(
        hf.Qwen2VLImageProcessor(), tokenizer, hf.Qwen2VLVideoProcessor(), chat_template=make.CHAT_TEMPLATE
    )
    return models.Policy(vlm, processor)


@pytest.fixture(scope="module")
def policies():
    built = {}
    for family in FAMILIES:
        torch.manual_seed(0)
        policy = qwen2_vl(make.build_tokenizer()) if family == "qwen2_vl" else make.build_policy(family)
        policy.image_size, policy.max_pixels = None, 112 * 112  # native sizes: prompts differ in image tokens too
        # at initialisation the layers hardly matter: the likeliest next token is the last one again
        with torch.no_grad():
            for name, p in policy.named_parameters():
                p.mul_(4.0 if p.ndim > 1 and "embed_tokens" not in name else 1.0)
        built[family] = policy.eval()
    return built


@pytest.fixture(params=FAMILIES)
def policy(request, policies):
    yield policies[request.param]
    policies[request.param].zero_grad()


def encode(policy, which=(0, 1, 2)) -> models.Prompts:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]
    return policy.encode([images[i] for i in which], [TEXTS[i] for i in which])


def completions(lengths=((1, 12, 5), (12, 1, 2), (7, 3, 12))) -> list[list[torch.Tensor]]:
    g = torch.Generator().manual_seed(3)
    return [[torch.randint(10, 1000, (n,), generator=g) for n in group] for group in lengths]


def separate(policy, prompts, p: int, completion: torch.Tensor, temperature=1.0) -> torch.Tensor:
    """The slow twin: one prompt and one completion as an ordinary sequence, the model's own positions, full logits."""
    prompt, _, pixels, grid = prompts.one(p)
    ids = torch.cat([prompt, completion])[None]
    kinds = (ids == policy.vlm.config.image_token_id).int()
    positions, _ = policy.vlm.model.get_rope_index(input_ids=ids, mm_token_type_ids=kinds, image_grid_thw=grid)
    logits = policy.vlm(input_ids=ids, position_ids=positions, pixel_values=pixels, image_grid_thw=grid).logits[
        0, len(prompt) - 1 : -1
    ]
    logits = (logits / temperature).index_fill(-1, torch.tensor(policy.banned_ids), -torch.inf)
    return logits.log_softmax(-1).gather(-1, completion[:, None])[:, 0]


def options(policy, **other) -> dict:
    return {"num_generations": 3, "max_new_tokens": 10, "eos_token_id": -1, "banned_ids": policy.banned_ids} | other


def same(a: grpo.Rollout, b: grpo.Rollout) -> None:
    assert torch.equal(a.ids, b.ids) and torch.equal(a.mask, b.mask)
    torch.testing.assert_close(a.logp, b.logp, rtol=1e-4, atol=1e-5)


UNIFORMS = torch.rand(3, 3, 10, generator=torch.Generator().manual_seed(1))


# -------------------------------------------------------------------------------------------------------------- packing


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_equal_separate_rows(policy, checkpointing):
    """Log-probabilities, and the gradient of every parameter, vision tower included."""
    prompts, groups = encode(policy), completions()
    assert len(set(prompts.inputs["attention_mask"].sum(-1).tolist())) == 3  # really different lengths
    upstream = torch.randn(55, generator=torch.Generator().manual_seed(2))
    expected = torch.cat([separate(policy, prompts, p, o) for p, group in enumerate(groups) for o in group])
    (expected * upstream).sum().backward()
    truth = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    if checkpointing:
        policy.train().vlm.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        rows = policy.pack(prompts, list(enumerate(groups)))
        logp, _, _ = policy(rows)
        (logp * upstream).sum().backward()
    finally:
        policy.eval().vlm.gradient_checkpointing_disable()
    torch.testing.assert_close(logp, expected, rtol=1e-4, atol=1e-5)
    total = torch.stack([g.norm() for g in truth.values()]).norm()
    for name, p in policy.named_parameters():
        if name in truth:
            assert (p.grad - truth[name]).norm() <= 1e-4 * truth[name].norm() + 1e-6 * total, name


def test_a_group_cut_over_rows_changes_nothing(policy):
    prompts, groups = encode(policy), completions()
    whole = policy.pack(prompts, list(enumerate(groups)))
    cut = policy.pack(prompts, [(p, group[i:j]) for p, group in enumerate(groups) for i, j in ((0, 1), (1, 3))])
    assert len(cut.ids) == 2 * len(whole.ids)
    with torch.no_grad():
        a, b = (policy(rows) for rows in (whole, cut))
    torch.testing.assert_close(a[0], b[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a[1], b[1], rtol=1e-4, atol=1e-5)


def test_context_queries_read_and_do_not_disturb(policy):
    """With queries after it a completion's log-probabilities are what they were; its mask is what it gets alone."""
    prompts, groups = encode(policy), completions()
    torch.manual_seed(0)
    segmenter = models.build_segmenter(make.SAM2_CONFIG).eval()
    pictures = segmenter.embed([Image.new("RGB", size, "red") for size in SIZES])
    with torch.no_grad():
        plain = policy(policy.pack(prompts, list(enumerate(groups))))[0]
    policy.context, policy.segmenter = models.ContextModule(128, 64, num_queries=5, layers=1).eval(), segmenter
    try:
        rows = policy.pack(prompts, list(enumerate(groups)))
        index = torch.arange(3).repeat_interleave(3)
        tokens: list = []
        policy.context.register_forward_hook(lambda module, given, made: tokens.append(made))
        logp, _, masks = policy(rows, 1.0, pictures, index)
        torch.testing.assert_close(logp, plain, rtol=1e-4, atol=1e-5)
        assert masks.shape == (9, 32, 32)
        single = segmenter.decode(pictures, index, tokens[0])[0]  # SAM2's single mask, none of its three proposals
        assert torch.equal(masks, single[:, 0]) and not torch.allclose(masks, single[:, 1])
        for b, (p, o) in enumerate((p, o) for p, group in enumerate(groups) for o in group):
            alone = policy(policy.pack(prompts, [(p, [o])]), 1.0, pictures, torch.tensor([p]))[2]
            torch.testing.assert_close(masks[b], alone[0], rtol=1e-4, atol=1e-4)
        masks.square().mean().backward()  # L_seg reaches the queries and, through the completion, the policy
        assert policy.context.queries.grad.abs().sum() > 0
        assert policy.vlm.get_input_embeddings().weight.grad.abs().sum() > 0
    finally:
        policy.context = policy.segmenter = None


# ------------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_logprobs_equal_teacher_forced_ones(policy, temperature):
    """What the sampler said of its tokens is what the update finds: left padding, cache and packing agree."""
    prompts = encode(policy)
    rollout = grpo.sample(policy.vlm, prompts.inputs, UNIFORMS, **options(policy, temperature=temperature))
    rows = policy.pack(prompts, [(p, list(rollout.ids[p])) for p in range(3)])
    with torch.no_grad():
        logp, _, _ = policy(rows, temperature)
        torch.testing.assert_close(rollout.logp.flatten(), logp, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            rollout.logp[1, 2], separate(policy, prompts, 1, rollout.ids[1, 2], temperature), rtol=1e-4, atol=1e-5
        )


def test_greedy_tokens_equal_generate(policy):
    prompts = encode(policy)
    never = [*policy.banned_ids, policy.eos_token_id]
    ours = grpo.sample(
        policy.vlm, prompts.inputs, UNIFORMS, **options(policy, num_generations=1, temperature=0, banned_ids=never)
    )
    inputs = {k: v for k, v in prompts.inputs.items() if k != "position_ids"}
    theirs = policy.vlm.generate(**inputs, do_sample=False, max_new_tokens=10, min_new_tokens=10, suppress_tokens=never)
    assert torch.equal(ours.ids[:, 0], theirs[:, prompts.inputs["input_ids"].shape[1] :])
    assert len(ours.ids.unique()) > 10  # not one token over and over


def test_a_batch_of_prompts_equals_one_by_one(policy):
    prompts = encode(policy)
    together = grpo.sample(policy.vlm, prompts.inputs, UNIFORMS, **options(policy))
    for p in range(3):
        alone = grpo.sample(policy.vlm, encode(policy, [p]).inputs, UNIFORMS[p : p + 1], **options(policy))
        same(alone, grpo.Rollout(together.ids[p : p + 1], together.mask[p : p + 1], together.logp[p : p + 1]))


def slow_sample(policy, prompts, uniforms, end_ids, T, temperature=1.0, top_p=1.0) -> grpo.Rollout:
    """The slow twin: every token of every completion from a forward over the whole sequence, alone, without a cache."""
    P, G = uniforms.shape[:2]
    ids = torch.zeros(P, G, T, dtype=torch.long)
    mask = torch.zeros(P, G, T, dtype=torch.bool)
    logp = torch.zeros(P, G, T)
    for p in range(P):
        prompt, _, pixels, grid = prompts.one(p)
        for g in range(G):
            row = prompt
            for t in range(T):
                kinds = (row == policy.vlm.config.image_token_id).int()[None]
                where = dict(input_ids=row[None], mm_token_type_ids=kinds, image_grid_thw=grid)
                positions, _ = policy.vlm.model.get_rope_index(**where)
                out = policy.vlm(input_ids=row[None], position_ids=positions, pixel_values=pixels, image_grid_thw=grid)
                logits = out.logits[:, -1].index_fill(-1, torch.tensor(policy.banned_ids), -torch.inf)
                token, value = grpo.pick_tokens(logits, uniforms[p, g, t : t + 1], temperature, top_p)
                ids[p, g, t], mask[p, g, t], logp[p, g, t] = token[0], True, value[0]
                row = torch.cat([row, token])
                if int(token) in end_ids:
                    break
    return grpo.Rollout(ids, mask, logp)


@pytest.mark.parametrize("segment", [1, 2, 3, 16])
@torch.no_grad()
def test_tokens_equal_a_slow_twins(policy, segment):
    """Ragged prompts and ends, two end tokens; completions leave at a segment's end, whole groups too."""
    free = grpo.sample(policy.vlm, encode(policy).inputs, UNIFORMS, **options(policy))
    ends = [int(free.ids[0, 0, 4]), *free.ids[1, :, 2].tolist()]  # a token here and there, and all of group 1
    slow = slow_sample(policy, encode(policy), UNIFORMS, ends, 10)
    got = grpo.sample(
        policy.vlm, encode(policy).inputs, UNIFORMS, **options(policy, eos_token_id=ends, segment=segment)
    )
    same(got, slow)
    lengths = slow.mask.sum(-1)
    assert lengths[1].max() <= 3 and lengths.max() == 10 and len(lengths.unique()) > 2
    assert got.ids[~got.mask].eq(0).all() and got.logp[~got.mask].eq(0).all()


@pytest.mark.parametrize("temperature,top_p", [(0.0, 1.0), (0.7, 0.9)])
@torch.no_grad()
def test_temperature_and_top_p_equal_a_slow_twins(policy, temperature, top_p):
    how = {"temperature": temperature, "top_p": top_p}
    got = grpo.sample(policy.vlm, encode(policy).inputs, UNIFORMS, **options(policy, segment=4, **how))
    same(got, slow_sample(policy, encode(policy), UNIFORMS, [-1], 10, **how))


def test_prompts_in_parts_are_the_prompts(policy):
    prompts = encode(policy)
    inputs = prompts.inputs
    for bounds in ([0, 1, 2, 3], [0, 2, 9], [0, 3]):
        parts = [prompts.part(i, j) for i, j in zip(bounds, bounds[1:], strict=False)]
        for name, x in inputs.items():
            assert torch.equal(torch.cat([part[name] for part in parts], 1 if name == "position_ids" else 0), x), name


def test_sampling_leaves_no_cache_behind(policy):
    """Not even until the garbage collector comes: on a GPU the update needs the room."""
    kinds = ("DynamicLayer", "PromptOnce", "_Batch")
    caches = lambda: sum(type(x).__name__ in kinds for x in gc.get_objects())  # noqa: E731
    gc.collect()
    before = caches()
    gc.disable()
    try:
        grpo.sample(policy.vlm, encode(policy).inputs, UNIFORMS, **options(policy))
        assert caches() <= before
    finally:
        gc.enable()


def test_keys_and_values_grow_layer_by_layer(monkeypatch):
    """All layers' old ones beside all the new ones would be twice the memory, when there is the most of them."""
    layer = type("DynamicLayer", (), {"keys": torch.ones(4, 1, 3, 2), "values": torch.ones(4, 1, 3, 2)})
    seen = grpo.PromptOnce([layer() for _ in range(8)], torch.ones(4, 3), G=2)
    old = [weakref.ref(keys) for keys, _ in seen.own]
    pad, there = torch.nn.functional.pad, []

    def counted(*args, **kw):
        there.append(sum(ref() is not None for ref in old))
        return pad(*args, **kw)

    monkeypatch.setattr(torch.nn.functional, "pad", counted)
    seen.grow(5)
    assert there[0:16:2] == [8, 7, 6, 5, 4, 3, 2, 1] and seen.own[7][1].shape == (8, 1, 5, 2)


def test_all_rows_end_at_once(policy):
    """Every token but one is banned, and that one is the end."""
    V = policy.vlm.get_output_embeddings().weight.shape[0]
    only = options(policy, eos_token_id=7, banned_ids=[i for i in range(V) if i != 7])
    got = grpo.sample(policy.vlm, encode(policy).inputs, UNIFORMS, **only)
    assert got.ids[..., 0].eq(7).all() and got.mask.sum() == 9 and got.logp.abs().max() < 1e-6


def test_banned_tokens_never_appear(policy):
    V = policy.vlm.get_output_embeddings().weight.shape[0]
    got = grpo.sample(
        policy.vlm,
        encode(policy).inputs,
        UNIFORMS,
        **options(policy, banned_ids=[i for i in range(V) if i not in (20, 30, 40)]),
    )
    assert set(got.ids.unique().tolist()) == {20, 30, 40}
    for name in ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"):
        assert policy.processor.tokenizer.convert_tokens_to_ids(name) in policy.banned_ids


def test_sampling_from_a_policy_in_training(policy):
    """Under gradient checkpointing in training mode transformers drops the cache: the sampler steps out and back."""
    inputs = encode(policy).inputs
    expected = grpo.sample(policy.vlm, inputs, UNIFORMS, **options(policy))
    policy.train().vlm.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        same(grpo.sample(policy.vlm, inputs, UNIFORMS, **options(policy)), expected)
        assert policy.vlm.training
    finally:
        policy.eval().vlm.gradient_checkpointing_disable()


@pytest.mark.parametrize("bad", ["pick_tokens", "attend"])
def test_training_mode_and_attention_are_restored_after_an_error(policy, monkeypatch, bad):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def fails(*_args, **_kw):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(*((grpo, bad) if bad == "pick_tokens" else (grpo.PromptOnce, bad)), fails)
    policy.train()
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            grpo.sample(policy.vlm, encode(policy).inputs, UNIFORMS, **options(policy))
        assert policy.vlm.training and policy.vlm.get_decoder().config._attn_implementation == "sdpa"
        assert "prompt_once" not in ALL_ATTENTION_FUNCTIONS
    finally:
        policy.eval()


def test_inputs_that_would_sample_nonsense_are_refused_before_the_prefill(policy, monkeypatch):
    inputs = encode(policy).inputs
    monkeypatch.setattr(policy.vlm.model, "forward", lambda *_a, **_k: pytest.fail("the prefill ran"))
    right = {**inputs, "attention_mask": inputs["attention_mask"].flip(-1)}
    with pytest.raises(ValueError, match="padded on the left"):
        grpo.sample(policy.vlm, right, UNIFORMS, **options(policy))
    with pytest.raises(ValueError, match="give position_ids"):
        rest = {k: v for k, v in inputs.items() if k != "position_ids"}
        grpo.sample(policy.vlm, rest, UNIFORMS, **options(policy))
    for uniforms in (UNIFORMS + 1, UNIFORMS - 1, UNIFORMS * torch.nan):
        with pytest.raises(ValueError, match="at least 0 and below 1"):
            grpo.sample(policy.vlm, inputs, uniforms, **options(policy))
    with pytest.raises(ValueError, match=r"uniforms \(2, 3, 10\) must be at least"):
        grpo.sample(policy.vlm, inputs, UNIFORMS[:2], **options(policy))


def test_a_decode_step_never_waits_for_python(policy, monkeypatch):
    """A CUDA graph cannot record a step that reads a value back. So no such reading may come with each token."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            waiting = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select")
            self.reads += op.name().split("::")[1] in waiting
            return op(*args, **(kwargs or {}))

    monkeypatch.setattr(grpo, "recording", lambda: True)  # as on a GPU that records
    counts = []
    for T in (3, 9):
        with Count() as count:
            grpo.sample(policy.vlm, encode(policy).inputs, UNIFORMS, **options(policy, max_new_tokens=T))
        counts.append(count.reads)
    assert counts[0] == counts[1] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_recorded_decode_step_draws_the_same_tokens(policies):
    policy = policies["qwen2_5_vl"]
    expected = grpo.sample(policy.vlm, encode(policy).inputs, UNIFORMS, **options(policy))
    policy.to("cuda")
    try:
        for segment in (3, 5, 256):  # 5 is recorded twice
            got = grpo.sample(policy.vlm, encode(policy).inputs, UNIFORMS, **options(policy, segment=segment))
            same(grpo.Rollout(*(x.cpu() for x in dataclasses.astuple(got))), expected)
    finally:
        policy.to("cpu")


def test_a_chat_template_that_opens_the_answer(policy):
    """Reasoning models' templates end in <think>: it belongs to every completion, and is not written a second time."""
    assert policy.opened == ""
    template = policy.processor.chat_template
    opening = "{% if add_generation_prompt %}<think>\n{% endif %}"
    try:
        policy.processor.chat_template = template + opening
        again = models.Policy(policy.vlm, policy.processor)
        text = "<think>\nleft</think><answer>[]</answer>"
        ids = torch.tensor([policy.processor.tokenizer("left</think><answer>[]</answer>").input_ids])
        assert again.decode(ids, torch.ones_like(ids, dtype=torch.bool)) == [text]
        assert rewards.parse_answer(text, "drseg").think_ok
        assert policy.processor.tokenizer.decode(again.tokens("<think></think>x")[:-1]) == "</think>x"
    finally:
        policy.processor.chat_template = template


def test_every_end_that_the_model_names_is_one(policy):
    other = policy.processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    before = policy.vlm.generation_config.eos_token_id
    try:
        policy.vlm.generation_config.eos_token_id = [policy.eos_token_id, other]
        again = models.Policy(policy.vlm, policy.processor)
        assert again.end_ids == sorted([policy.eos_token_id, other])
        ids = torch.tensor([[20, 21, other, 0]])
        assert again.decode(ids, torch.tensor([[True, True, True, False]])) == [
            policy.processor.tokenizer.decode([20, 21])
        ]
        policy.vlm.generation_config.eos_token_id = None  # names none: token 0 is not one
        assert models.Policy(policy.vlm, policy.processor).end_ids == [policy.eos_token_id]
    finally:
        policy.vlm.generation_config.eos_token_id = before


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler")
def test_compiled_layers_draw_and_learn_the_same():
    """Sampling, and updates on rows of several lengths, with checkpointing and without."""
    plain = models.load_policy("toy/qwen2_5_vl", image_size=168)
    compiled = models.load_policy("toy/qwen2_5_vl", image_size=168)
    models.compile_layers(compiled.vlm)
    samples = data.load("toy", None, "train")[:4]
    asked = [data.build_prompt(s.query, "drseg", "pixels") for s in samples]
    prompts = plain.encode([s.image for s in samples], asked)
    uniforms = torch.rand(4, 3, 30, generator=torch.Generator().manual_seed(0))
    how = dict(num_generations=3, max_new_tokens=30, eos_token_id=plain.end_ids, banned_ids=plain.banned_ids)
    rollout = grpo.sample(plain.vlm, prompts.inputs, uniforms, **how)
    same(grpo.sample(compiled.vlm, prompts.inputs, uniforms, **how), rollout)
    for checkpointing in (False, True):
        for longest in (9999, 130):
            gradients = []
            for policy in (plain, compiled):
                policy.zero_grad()
                policy.train()
                if checkpointing:
                    policy.vlm.gradient_checkpointing_enable({"use_reentrant": False})
                for micro in models.pack_rollout(policy, prompts, rollout, max_row_tokens=longest, rows_per_batch=2):
                    policy(micro.rows)[0].sum().backward()
                gradients.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
            for name, gradient in gradients[0].items():
                assert (gradients[1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


# ------------------------------------------------------------------------------------------------- windows of the tower


def test_windows_in_one_call_equal_the_loop(policy):
    """Values and gradients, on pictures whose windows have several lengths."""
    visual = policy.vlm.model.visual
    assert visual.config._attn_implementation == "windows_flash"
    inputs = encode(policy).inputs
    found = []
    for attention in ("sdpa", "windows_flash"):
        visual.config._attn_implementation = attention
        policy.zero_grad()
        out = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        out = out.pooler_output if hasattr(out, "pooler_output") else out
        out = torch.cat(list(out)) if isinstance(out, (tuple, list)) else out
        out.square().mean().backward()
        found.append((out.detach(), {n: p.grad.clone() for n, p in visual.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


# ------------------------------------------------------------------------------------------------------- save and load


def test_policy_round_trip(policy, tmp_path):
    policy.save(tmp_path / "p")
    again = models.load_policy(str(tmp_path / "p"), max_pixels=policy.max_pixels)
    prompts, groups = encode(policy), completions()
    with torch.no_grad():
        a, b = (x(x.pack(encode(x), list(enumerate(groups))))[0] for x in (policy, again))
    assert torch.equal(a, b) and again.family == policy.family and again.banned_ids == policy.banned_ids
    assert all(torch.equal(x, y) for x, y in zip(prompts.inputs.values(), encode(again).inputs.values(), strict=True))


@pytest.mark.parametrize("named", ["Qwen2_5_VLImageProcessor", "Qwen2_5_VLImageProcessorFast", "Qwen2VLImageProcessor"])
def test_a_processor_as_older_checkpoints_have_it(named, tmp_path):
    """Two files with the settings in one of them, and the name of a class that transformers may have no more."""
    new, old = models.find("toy/qwen2_5_vl"), tmp_path / "old"
    shutil.copytree(new, old)
    settings = json.loads((old / "processor_config.json").read_text())["image_processor"]
    (old / "processor_config.json").unlink()
    settings |= {"image_processor_type": named, "processor_class": "Qwen2_5_VLProcessor"}
    (old / "preprocessor_config.json").write_text(json.dumps(settings))
    template = {"chat_template": (old / "chat_template.jinja").read_text()}
    (old / "chat_template.jinja").unlink()
    (old / "chat_template.json").write_text(json.dumps(template))
    a, b = (encode(models.load_policy(str(folder), max_pixels=112 * 112)) for folder in (new, old))
    assert all(torch.equal(a.inputs[key], b.inputs[key]) for key in a.inputs.keys() | b.inputs.keys())


@pytest.mark.parametrize("connector,collapse", [("transformer", False), ("mlp", True)])
def test_lens_round_trip(policies, tmp_path, connector, collapse):
    """Context module and tuned mask decoder lie beside the VLM and come back with it."""
    policy = policies["qwen2_5_vl"]
    torch.manual_seed(1)
    make.save_segmenter(models.build_segmenter(make.SAM2_CONFIG), tmp_path / "sam")
    policy.segmenter = models.load_segmenter(str(tmp_path / "sam"))
    policy.context = models.ContextModule(128, 64, 4, connector, collapse, layers=1)
    try:
        for p in policy.segmenter.mask_decoder.parameters():
            p.data.add_(0.01)  # tuned
        policy.save(tmp_path / "p")
        again = models.load_policy(str(tmp_path / "p"), segmenter=str(tmp_path / "sam"))
        assert again.context.config == policy.context.config
        for a, b in ((policy.context, again.context), (policy.segmenter, again.segmenter)):
            assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
        tokens = again.context(torch.randn(2, 4, 128))
        assert tokens.shape == (2, 1 if collapse else 4, 64)
    finally:
        policy.context = policy.segmenter = None


@pytest.mark.parametrize("load", [models.load_policy, models.load_segmenter])
@pytest.mark.parametrize(
    "name", ["nobody/nothing", "missing/folder/model.pt", "configs/none.yaml:missing.pt", "facebook/sam2-hiera-tiny"]
)
def test_what_cannot_be_loaded_is_said_in_one_sentence(load, name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # whatever the reader has there
    with pytest.raises(OSError) as error:
        load(name)
    text = str(error.value)
    assert name in text and "\n" not in text and text.endswith(".") and text.count(". ") == 0


def test_connector_must_be_known():
    with pytest.raises(ValueError, match="transformer"):
        models.ContextModule(16, 8, 2, "linear")


# -------------------------------------------------------------------------------------------------------- the segmenter


@pytest.fixture(scope="module")
def sam():
    """SAM2 tiny at its real 1024 x 1024, from the package's configuration, with random weights."""
    from sam2.build_sam import build_sam2

    torch.manual_seed(0)
    return build_sam2("configs/sam2/sam2_hiera_t.yaml", None, device="cpu").eval()


@pytest.fixture(scope="module")
def big(sam):
    return models.Segmenter(
        sam.image_encoder, sam.sam_prompt_encoder, sam.sam_mask_decoder, sam.no_mem_embed, sam.image_size
    ).eval()


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return models.build_segmenter(make.SAM2_CONFIG).eval()


class Thing:
    """What Segmenter.union needs of an answer's object."""

    def __init__(self, box, points=(), negative_points=()):
        self.box, self.points, self.negative_points = np.array(box, float), list(points), list(negative_points)


def noise_image(size, seed=0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def agree(a: torch.Tensor, b) -> None:
    """Masks equal but for the odd pixel whose logit is zero to the last bit; and not trivially so."""
    a, b = a.cpu().numpy(), np.asarray(b).astype(bool)
    assert a.shape == b.shape and (a != b).mean() < 1e-4


def test_segmenter_equals_sams_own_predictor(sam, big):
    """Boxes alone, boxes with points on and beside, several objects, two pictures that are not square."""
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(sam)
    images = [noise_image((300, 200), 0), noise_image((150, 260), 1)]
    embeddings, index = big.embed(images), [0, 1, 0]
    boxes = np.array([[20.0, 30, 180, 150], [10, 40, 120, 200], [150.5, 10.25, 290, 190]])
    spread = np.random.default_rng(0).uniform(0.1, 0.9, (3, 3, 2))
    points = boxes[:, None, :2] + spread * (boxes[:, None, 2:] - boxes[:, None, :2])
    labels = np.array([[1, 0, 1]] * 3)
    got = {k: list(big.segment(embeddings, index, boxes, points[:, :k], labels[:, :k], chunk=2)) for k in (0, 1, 3)}
    inside = 0
    for i, image in enumerate(images):
        predictor.set_image(np.array(image))
        for k, masks in got.items():
            for n in (n for n in range(3) if index[n] == i):
                one = {"point_coords": points[n, :k], "point_labels": labels[n, :k]} if k else {}
                proposals, scores, _ = predictor.predict(box=boxes[n], multimask_output=True, **one)
                agree(masks[n], proposals[scores.argmax()])
                inside += 0 < masks[n].float().mean() < 1
    assert inside > 0  # random weights, but not all masks are empty or full


@pytest.mark.parametrize("size", ["tiny", pytest.param("large", marks=pytest.mark.slow)])
def test_sam2_1_by_its_hub_id_equals_its_own_predictor(size, tmp_path, monkeypatch):
    """The Hub's file stands here with random weights; what is fetched by which name is the package's own business."""
    import huggingface_hub
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES, build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    hub_id = f"facebook/sam2.1-hiera-{size}"
    config, file = HF_MODEL_ID_TO_FILENAMES[hub_id]
    torch.manual_seed(0)
    sam = build_sam2(config, None, device="cpu").eval()
    torch.save({"model": sam.state_dict()}, tmp_path / file)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo_id, filename: str(tmp_path / filename))
    segmenter, predictor = models.load_segmenter(hub_id), SAM2ImagePredictor(sam)
    assert segmenter.name == hub_id and models.segmenter_to_follow(hub_id) == hub_id
    image, box = noise_image((300, 200), 0), np.array([[20.0, 30, 180, 150]])
    predictor.set_image(np.array(image))
    proposals, scores, _ = predictor.predict(box=box[0], multimask_output=True)
    (mask,) = segmenter.segment(segmenter.embed([image]), [0], box, np.zeros((1, 0, 2)), np.zeros((1, 0)))
    agree(mask, proposals[scores.argmax()])
    assert 0 < mask.float().mean() < 1


def test_nothing_to_segment(tiny):
    image = noise_image(SIZES[0], 0)
    nothing = np.zeros((0, 4)), np.zeros((0, 1, 2)), np.zeros((0, 1))
    assert list(tiny.segment(tiny.embed([image]), [], *nothing)) == []
    with pytest.raises(ValueError, match="no pictures"):
        tiny.embed([])


def test_batched_masks_equal_one_by_one(tiny):
    images = [noise_image(size, i) for i, size in enumerate(SIZES)]
    together = tiny.embed(images)
    rng = np.random.default_rng(0)
    index = [0, 0, 1, 2, 2, 2, 1]
    sizes = np.array([SIZES[i] for i in index], float)
    boxes = np.concatenate([rng.uniform(0, 0.4, (7, 2)) * sizes, rng.uniform(0.5, 1, (7, 2)) * sizes], 1)
    points, labels = rng.uniform(0, 1, (7, 2, 2)) * sizes[:, None], np.tile([1, 0], (7, 1))
    got = list(tiny.segment(together, index, boxes, points, labels))
    for n, i in enumerate(index):
        one = boxes[n : n + 1], points[n : n + 1], labels[n : n + 1]
        (alone,) = tiny.segment(tiny.embed([images[i]]), [0], *one)
        assert alone.shape == SIZES[i][::-1]
        agree(got[n], alone)


def test_union_equals_a_loop_over_objects(tiny):
    """Answers without objects, with one, with several; objects with different numbers of points."""
    images = [noise_image(size, i) for i, size in enumerate(SIZES)]
    embeddings = tiny.embed(images)
    answers = [
        [Thing([5, 5, 40, 60], [(20, 30)])],
        [],
        [Thing([0, 0, 80, 50]), Thing([60, 10, 150, 55], [(90, 30), (100, 40)], [(70, 20)])],
        [Thing([10, 10, 90, 90], [(50, 50)]), Thing([3.5, 70, 30, 95], [(10, 80)])],
    ]
    index = [0, 2, 1, 2]
    got = tiny.union(embeddings, index, answers)
    for mask, i, objects in zip(got, index, answers, strict=True):
        truth = np.zeros(SIZES[i][::-1], dtype=bool)
        for o in objects:
            points = np.array([*o.points, *o.negative_points], float).reshape(1, -1, 2)
            labels = np.array([[1] * len(o.points) + [0] * len(o.negative_points)]).reshape(1, -1)
            (part,) = tiny.segment(embeddings, [i], o.box[None], points, labels)
            truth |= part.numpy()
        agree(mask, truth)
    assert not got[1].any()


def test_union_holds_one_mask_at_a_time(tiny, monkeypatch):
    """512 objects on 12 megapixels were 6 GB: each mask joins its answer's before the next but one is made."""
    made: list = []
    segment = tiny.segment

    def noted(*args):
        for mask in segment(*args):
            made.append(weakref.ref(mask))
            assert sum(ref() is not None for ref in made) <= 2  # this one, and the one that is being joined
            yield mask
            del mask

    monkeypatch.setattr(tiny, "segment", noted)
    tiny.union(tiny.embed([noise_image(SIZES[0], 0)]), [0], [[Thing([5, 5, 40, 40])] * 5])
    assert len(made) == 5


def test_the_image_encoder_in_16_bits_makes_the_same_masks(monkeypatch):
    """On drawn pictures with the shipped weights: masks differ by an odd border pixel."""
    segmenter = models.load_segmenter("toy/sam2")
    samples = [s for s in data.load("toy", None, "val")[:24] if len(s.boxes)]
    index = list(range(len(samples)))
    boxes = np.stack([s.boxes[0] for s in samples])
    found = []
    for half in (False, True):
        monkeypatch.setattr(models.Segmenter, "in_16_bits", half)
        embeddings = segmenter.embed([s.image for s in samples])
        assert embeddings.features.dtype == torch.float32
        nothing = np.zeros((len(samples), 0, 2)), np.zeros((len(samples), 0), dtype=np.int32)
        found.append(list(segmenter.segment(embeddings, index, boxes, *nothing)))
    ious = [models.mask_iou(a, b) for a, b in zip(*found, strict=True)]
    assert np.mean(ious) > 0.98 and any(iou < 1 for iou in ious)  # not the same numbers twice


def test_segmenter_round_trip(tiny, tmp_path):
    make.save_segmenter(tiny, tmp_path)
    again = models.load_segmenter(str(tmp_path))
    pairs = zip(tiny.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a.half().float(), b) for a, b in pairs)  # the file is in half precision
    assert not any(p.requires_grad for p in again.parameters()) and again.name == str(tmp_path)


def test_checkpoint_file_of_the_package(sam, big, tmp_path):
    """facebook's own files are known by their names; any other needs its configuration before the colon."""
    for name in ("sam2_hiera_tiny.pt", "configs/sam2/sam2_hiera_t.yaml:other.pt"):
        config, _, file = name.rpartition(":")
        torch.save({"model": sam.state_dict()}, tmp_path / file)
        again = models.load_segmenter(f"{config}:{tmp_path / file}" if config else str(tmp_path / file))
        assert again.image_size == 1024
        assert all(
            torch.equal(a, b) for a, b in zip(big.state_dict().values(), again.state_dict().values(), strict=True)
        )


def test_mask_iou():
    a, b = torch.zeros(4, 4).bool(), torch.zeros(4, 4).bool()
    assert models.mask_iou(a, b) == 1
    a[:2], b[1:3] = True, True
    assert models.mask_iou(a, b) == 1 / 3 and models.mask_iou(a, ~a) == 0


def test_dice_and_bce_by_hand():
    logits, target = torch.tensor([[[2.0, -1.0], [0.0, 3.0]]]), torch.tensor([[[1, 0], [1, 1]]])
    p = 1 / (1 + np.exp(-np.array([2.0, -1.0, 0.0, 3.0])))
    t = np.array([1, 0, 1, 1])
    dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    bce = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    assert models.mask_loss(logits, target).item() == pytest.approx(dice + bce, rel=1e-5)


def test_thin_pictures_are_widened():
    assert models.widen_thin(Image.new("RGB", (3000, 2))).size == (3000, 20)
    assert models.widen_thin(Image.new("RGB", (30, 20))).size == (30, 20)


def test_the_connector_knows_its_places():
    torch.manual_seed(0)
    context = models.ContextModule(32, 16, num_queries=4, layers=1).eval()
    states = torch.randn(1, 4, 32)
    assert not torch.allclose(context(states.flip(1)), context(states).flip(1), atol=1e-4)


def test_context_module_takes_its_own_number_of_states_only():
    context = models.ContextModule(32, 16, num_queries=4, connector="mlp", layers=1)
    assert context(torch.zeros(2, 4, 32)).shape == (2, 4, 16)
    for K in (1, 5):
        with pytest.raises(ValueError, match=rf"states \(2, {K}, 32\) for \(4, 32\) queries"):
            context(torch.zeros(2, K, 32))


# ------------------------------------------------------------------------------------ nothing of a checkpoint's is run


def lens_folder(tmp_path, segmenter: str):
    """A LENS checkpoint with the shipped VLM, whose lens.json names `segmenter`."""
    policy = models.load_policy("toy/qwen2_5_vl")
    d = policy.vlm.get_input_embeddings().weight.shape[1]
    policy.context = models.ContextModule(d, 64, num_queries=4, connector="mlp")
    policy.segmenter = models.load_segmenter("toy/sam2")
    policy.segmenter.name = segmenter
    policy.save(tmp_path)
    return tmp_path


def test_a_segmenters_file_names_parts_of_sam2_and_nothing_else(tmp_path):
    """Whatever such a file names is called: numpy.load with pickles was, and so was whatever the pickle named."""
    shipped = make.SAM2_CONFIG.read_text()
    marker = tmp_path / "ran"
    evil = f"no_mem_embed: {{_target_: pathlib.Path.touch, self: {marker}}}"
    for text, why in [
        (shipped.replace("no_mem_embed: {_target_: torch.zeros, size: [1, 1, 64]}", evil), "pathlib.Path.touch"),
        (shipped.replace("torch.zeros", "torch.load"), "torch.load"),
        (shipped.replace("torch.zeros", "${oc.env:HOME}"), "oc.env"),
        ("a: &a [1]\nb: [*a, *a]\n", "alias"),
        ("[" * 100_000, "20 kB"),
        ("[" * 900, "."),
        ("image_size: 3", "missing"),
        ("a: \x00", "."),
    ]:
        (tmp_path / "segmenter.yaml").write_text(text)
        with pytest.raises(models.CannotLoad, match=re.escape(why)):
            models.load_segmenter(str(tmp_path))
    assert not marker.exists()


def test_a_configuration_is_one_of_the_packages(tmp_path):
    """hydra found ../../../anywhere/evil.yaml, and built what that named."""
    marker = tmp_path / "ran"
    (tmp_path / "evil.yaml").write_text(f"model: {{_target_: pathlib.Path.touch, self: {marker}}}")
    with pytest.raises(models.CannotLoad):
        models.load_segmenter(f"{'../' * 12}{str(tmp_path)[1:]}/evil.yaml:x.pt")
    assert not marker.exists()


def test_a_checkpoints_segmenter_is_followed_only_where_it_is_known(tmp_path, monkeypatch):
    """What lens.json names is known here or at the Hub, or the user names it: the folder says what it is built of."""
    make.save_segmenter(models.load_segmenter("toy/sam2"), tmp_path / "theirs")
    theirs = str(tmp_path / "theirs")
    folder = str(lens_folder(tmp_path / "lens", theirs))
    for given in ("", "toy/sam2", "facebook/sam2-hiera-large"):
        with pytest.raises(models.CannotLoad, match="--segmenter"):
            models.load_policy(folder, segmenter=given)
    assert models.load_policy(folder, segmenter=theirs).segmenter.name == theirs
    for known in ("toy/sam2", "facebook/sam2-hiera-large", "x/sam2_hiera_tiny.pt"):
        assert models.segmenter_to_follow(known) == known
    # A folder that takes the name of the shipped one, where a run is started: it is not the shipped one.
    make.save_segmenter(models.load_segmenter("toy/sam2"), tmp_path / "toy" / "sam2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(models.CannotLoad, match="--segmenter"):
        models.segmenter_to_follow("toy/sam2")


def test_lens_json_that_does_not_fit_its_weights_is_said(tmp_path):
    """... before a byte is taken for what it says: a terabyte of queries, a billion layers."""
    folder = lens_folder(tmp_path, "toy/sam2")
    good = json.loads((folder / "lens.json").read_text())
    for change in ({"num_queries": 10**9}, {"layers": 10**9}, {"connector": 3}, {"d": "x"}, {"evil": 1}, {"d": -1}):
        (folder / "lens.json").write_text(json.dumps(good | {"context": good["context"] | change}))
        with pytest.raises(models.CannotLoad):
            models.load_policy(str(folder))
    for text in ("", "[]", "{}", json.dumps(good | {"segmenter": 3}), json.dumps(good | {"context": []})):
        (folder / "lens.json").write_text(text)
        with pytest.raises(models.CannotLoad):
            models.load_policy(str(folder))
