# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""The algorithm against slow twins: float64 loops written from the equations, and brute-force sampling."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicLayer

import grpo

torch.manual_seed(0)


# ----------------------------------------------------------------------------------------------------------- advantages


def slow_advantages(group, eps=1e-4):
    if max(group) == min(group):
        return [0.0] * len(group)
    mean = sum(group) / len(group)
    std = math.sqrt(sum((r - mean) ** 2 for r in group) / (len(group) - 1))
    return [(r - mean) / (std + eps) for r in group]


@pytest.mark.parametrize("G", [2, 3, 8])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e6, 1e12])
def test_advantages_equal_the_equation(G, scale):
    rewards = (torch.rand(5, G, dtype=torch.float64) + 3) * scale
    expected = torch.tensor([slow_advantages(row.tolist()) for row in rewards], dtype=torch.float64)
    torch.testing.assert_close(grpo.group_advantages(rewards), expected, rtol=1e-9, atol=1e-12)


def test_equal_rewards_teach_nothing():
    # Twelve float rewards of 0.3 have a standard deviation of about 6e-17; a tiny eps made that an advantage of 0.72.
    for value in (0.3, 0.0, -1.0, 1e8):
        assert grpo.group_advantages(torch.full((2, 12), value), eps=1e-12).eq(0).all()
    # different is different
    assert grpo.group_advantages(torch.tensor([[0.1 + 0.2, 0.3]], dtype=torch.float64)).ne(0).any()
    assert grpo.group_advantages(torch.tensor([[1.0]])).eq(0).all()  # a group of one


# ----------------------------------------------------------------------------------------------------------------- loss


def slow_loss(logp, old, ref, A, mask, average, low, high, beta):
    """SAM-R1 Eq. 4 / LENS Eq. 12 in Python floats."""
    P, G, T = mask.shape
    total = 0.0
    for p in range(P):
        group_tokens = sum(int(mask[p, g, t]) for g in range(G) for t in range(T))
        for g in range(G):
            n = sum(int(mask[p, g, t]) for t in range(T))
            for t in range(T):
                if not mask[p, g, t]:
                    continue
                rho = math.exp(logp[p, g, t] - old[p, g, t])
                clipped = min(max(rho, 1 - low), 1 + high)
                term = -min(rho * A[p, g], clipped * A[p, g])
                if ref is not None:
                    d = ref[p, g, t] - logp[p, g, t]
                    term += beta * (math.exp(d) - d - 1)
                total += term / (P * G * n) if average == "sequence" else term / (P * group_tokens)
    return total


def random_case(P=3, G=4, T=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, T + 1, (P, G), generator=g)
    mask = torch.arange(T) < lengths[..., None]
    old = -torch.rand(P, G, T, generator=g) * 3
    logp = old + torch.randn(P, G, T, generator=g) * 0.4  # far enough that both clips act, on both signs of A
    ref = old + torch.randn(P, G, T, generator=g) * 0.3
    A = torch.randn(P, G, generator=g)
    return logp, old, ref, A, mask


@pytest.mark.parametrize("average", ["sequence", "token"])
@pytest.mark.parametrize("clips", [(0.2, 0.2), (0.2, 0.3)])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_loss_equals_the_equation(average, clips, beta):
    logp, old, ref, A, mask = random_case()
    weights = grpo.token_weights(mask, average)
    loss, metrics = grpo.grpo_loss(logp, old, ref, A, weights, clip_low=clips[0], clip_high=clips[1], beta=beta)
    logp, old, ref, A = (np.asarray(x.double()) for x in (logp, old, ref, A))
    expected = slow_loss(logp, old, ref, A, mask.numpy(), average, *clips, beta)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert metrics["clipped_low"] > 0 and metrics["clipped_high"] > 0


@pytest.mark.parametrize("A", [1.0, -1.0])
@pytest.mark.parametrize("rho", [0.5, 0.79, 0.81, 1.0, 1.19, 1.25, 1.31, 2.0])
def test_clips_cut_the_gradient_where_they_should(A, rho):
    # gradient of -min(rho A, clip A) with respect to log pi is -rho A, or 0 where the clip is the smaller of the two
    logp = torch.tensor([[[math.log(rho)]]], requires_grad=True)
    one = torch.ones(1, 1, 1)
    loss, m = grpo.grpo_loss(logp, torch.zeros(1, 1, 1), None, torch.tensor([[A]]), one, clip_low=0.2, clip_high=0.3)
    loss.backward()
    cut = rho > 1.3 if A > 0 else rho < 0.8
    assert logp.grad.item() == pytest.approx(0.0 if cut else -rho * A, rel=1e-5)
    assert m["clipped_high"].item() == float(cut and A > 0) and m["clipped_low"].item() == float(cut and A < 0)


def test_ratio_is_exactly_one_on_the_first_update():
    logp = (-torch.rand(2, 3, 5) * 9).requires_grad_()
    _, m = grpo.grpo_loss(logp, logp.detach(), None, torch.randn(2, 3), grpo.token_weights(torch.ones(2, 3, 5).bool()))
    assert m["ratio"].item() == pytest.approx(1, abs=1e-6) and m["clipped_low"] == 0 and m["clipped_high"] == 0


def test_kl_values_and_gradients():
    ref, logp = torch.randn(1000) - 3, (torch.randn(1000) - 3).requires_grad_()
    kl = grpo.k3_kl(logp, ref)
    d = [r - q for r, q in zip(ref.tolist(), logp.tolist())]
    torch.testing.assert_close(kl, torch.tensor([min(math.exp(x) - x - 1, 10) for x in d]), rtol=1e-4, atol=1e-6)
    kl.sum().backward()
    inside = kl.detach() < 10
    expected = torch.tensor([1 - math.exp(x) for x in d])  # d kl / d logp = 1 - exp(d)
    torch.testing.assert_close(logp.grad[inside], expected[inside], rtol=1e-4, atol=1e-5)
    assert (kl >= 0).all()


def test_kl_does_not_overflow():
    logp = torch.tensor([-500.0, 0.0, -1.0], requires_grad=True)
    kl = grpo.k3_kl(logp, torch.tensor([0.0, -500.0, -1.0]))
    kl.sum().backward()
    assert torch.isfinite(kl).all() and torch.isfinite(logp.grad).all() and kl.max() <= 20
    assert kl[2] == 0 and logp.grad[2] == 0


@pytest.mark.parametrize("average", ["sequence", "token"])
def test_weights_sum_to_one_and_micro_batches_add_up(average):
    logp, old, ref, A, mask = random_case(seed=3)
    mask[1, 2] = False  # a completion without tokens makes no nan
    weights = grpo.token_weights(mask, average)
    assert weights.sum().item() == pytest.approx(1, rel=1e-6) and weights[~mask].eq(0).all()
    whole, _ = grpo.grpo_loss(logp, old, ref, A, weights, beta=0.1)
    parts = 0.0
    for p in range(3):
        for g in (slice(0, 1), slice(1, 4)):  # cut inside the group too
            cut = (slice(p, p + 1), g)
            parts += grpo.grpo_loss(logp[cut], old[cut], ref[cut], A[cut], weights[cut], beta=0.1)[0].item()
    assert whole.item() == pytest.approx(parts, rel=1e-5)


def test_average_must_be_known():
    with pytest.raises(ValueError, match="sequence"):
        grpo.token_weights(torch.ones(1, 1, 1).bool(), "mean")


# ---------------------------------------------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_chunked_logprobs_equal_naive_ones(chunk):
    hidden = torch.randn(37, 16, requires_grad=True)
    head = torch.randn(50, 16, requires_grad=True)
    targets, banned = torch.randint(0, 40, (37,)), [44, 49]
    upstream = torch.randn(37)

    logp, entropy = grpo.token_logprobs(hidden, head, targets, temperature=0.7, banned_ids=banned, chunk=chunk)
    (logp * upstream).sum().backward()
    got = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None

    logits = (hidden @ head.T) / 0.7
    logits = logits.masked_fill(torch.isin(torch.arange(50), torch.tensor(banned)), -torch.inf)
    naive = torch.distributions.Categorical(logits=logits)
    (naive.log_prob(targets) * upstream).sum().backward()
    torch.testing.assert_close(logp, naive.log_prob(targets), rtol=1e-5, atol=1e-5)
    p = naive.probs
    torch.testing.assert_close(entropy, -(p * p.clamp(min=1e-30).log()).sum(-1), rtol=1e-4, atol=1e-4)
    for a, b in zip(got, (hidden.grad, head.grad)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not entropy.requires_grad


def test_no_targets():
    logp, entropy = grpo.token_logprobs(torch.zeros(0, 4), torch.zeros(9, 4), torch.zeros(0, dtype=torch.long))
    assert logp.shape == entropy.shape == (0,)


# -------------------------------------------------------------------------------------------------------------- packing


def test_pack_group_by_hand():
    ids, positions, visible = grpo.pack_group(torch.tensor([7, 8]), [torch.tensor([1]), torch.tensor([2, 3])])
    assert ids.tolist() == [7, 8, 1, 2, 3] and positions.tolist() == [0, 1, 2, 2, 3]
    assert visible.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]


# ------------------------------------------------------------------------------------------------------------- sampling


def test_inverse_cdf_draws_the_distribution():
    """Chi-square: 60,000 draws against the softmax; the 99.9 % quantile of chi2 with 6 degrees of freedom is 22.5."""
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -torch.inf, 1.1, -3.0, 0.5])
    n = 60_000
    ids, logp = grpo.pick_tokens(logits.expand(n, -1), torch.rand(n, generator=torch.Generator().manual_seed(1)))
    expected = F.softmax(logits, -1) * n
    counts = torch.bincount(ids, minlength=8)
    real = expected > 0
    assert counts[4] == 0
    assert ((counts - expected)[real] ** 2 / expected[real]).sum() < 22.5
    torch.testing.assert_close(logp, F.log_softmax(logits, -1)[ids])


def test_inverse_cdf_edges():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    # u = 0 must not give a token of probability zero
    assert grpo.pick_tokens(logits, torch.tensor([0.0]))[0].item() == 1
    assert grpo.pick_tokens(logits, torch.tensor([0.5]))[0].item() == 3
    assert grpo.pick_tokens(logits, torch.tensor([1 - 2**-24]))[0].item() == 3  # nor u next to 1
    assert (
        grpo.pick_tokens(logits + torch.tensor([0, 1e-3, 0, 0, 0]), torch.tensor([0.99]), temperature=0)[0].item() == 1
    )


@pytest.mark.parametrize("temperature,top_p", [(0.5, 1.0), (1.0, 0.6), (2.0, 0.9)])
def test_temperature_and_top_p(temperature, top_p):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    p = F.softmax(logits / temperature, -1).numpy()
    kept, mass = [], 0.0
    for i in np.argsort(-p):  # the smallest set of likeliest tokens that reaches top_p
        kept.append(i)
        mass += p[i]
        if mass >= top_p:
            break
    u = (torch.arange(20_000) + 0.5) / 20_000
    ids, logp = grpo.pick_tokens(logits.expand(len(u), -1), u, temperature, top_p)
    assert set(ids.tolist()) == set(kept)
    for i in kept:
        assert (ids == i).float().mean().item() == pytest.approx(p[i] / mass, abs=1e-3)
        assert logp[ids == i][0].item() == pytest.approx(math.log(p[i] / mass), rel=1e-4)


def test_shapes_that_would_broadcast_are_refused():
    logp, old, ref, A, mask = random_case()
    weights = grpo.token_weights(mask)
    whole = dict(logp=logp, old_logp=old, ref_logp=ref, advantages=A, weights=weights, beta=0.1)
    grpo.grpo_loss(**whole)
    for name in ("old_logp", "ref_logp", "weights"):
        for bad in (whole[name][..., :1], whole[name][0], whole[name][:, :1]):
            with pytest.raises(ValueError, match=name):
                grpo.grpo_loss(**whole | {name: bad})
    for bad in (A[:, :1], A[0], A[..., None], A.flatten()):
        with pytest.raises(ValueError, match="one per completion or token"):
            grpo.grpo_loss(**whole | {"advantages": bad})
    with pytest.raises(ValueError, match="weights are torch.bool: floats are meant"):
        grpo.grpo_loss(**whole | {"weights": mask})
    with pytest.raises(ValueError, match="give ref_logp"):
        grpo.grpo_loss(**whole | {"ref_logp": None})
    with pytest.raises(ValueError, match="which completions are a group"):
        grpo.token_weights(mask[0])


def test_advantages_per_token_equal_advantages_per_completion():
    logp, old, ref, A, mask = random_case()
    weights = grpo.token_weights(mask, "token")
    each, metrics = grpo.grpo_loss(logp, old, ref, A, weights, beta=0.1)
    flat = [x.expand(mask.shape)[mask] for x in (logp, old, ref, A[..., None], weights)]
    line, same = grpo.grpo_loss(*flat, beta=0.1)
    assert line.item() == pytest.approx(each.item(), rel=1e-5)
    assert {k: v.item() for k, v in same.items()} == pytest.approx({k: v.item() for k, v in metrics.items()}, rel=1e-4)


def test_only_logp_carries_gradient():
    """old_logp left undetached once gave a gradient of exactly 0, without a word."""
    logp = (-torch.rand(2, 3, 5)).requires_grad_()
    A = torch.tensor([[1.0, -1.0, 0.5]] * 2)
    loss, _ = grpo.grpo_loss(logp, logp, logp - 0.3, A, torch.ones(2, 3, 5) / 30, beta=0.1)
    loss.backward()
    pulled = 0.1 * (1 - math.exp(-0.3))  # k3's gradient, towards a reference that stays where it is
    torch.testing.assert_close(logp.grad, (pulled - A[..., None].expand(2, 3, 5)) / 30)


def test_kl_is_never_negative_near_zero():
    d = torch.linspace(-1e-3, 1e-3, 200_001)
    kl = grpo.k3_kl(torch.zeros_like(d), d)
    assert (kl >= 0).all()
    torch.testing.assert_close(kl.double(), d.double().expm1() - d.double(), rtol=2e-2, atol=1e-10)


def test_advantages_of_whole_numbers():
    whole, real = (grpo.group_advantages(torch.tensor([[6, 2, 2, 2]], dtype=d)) for d in (torch.long, torch.float32))
    assert torch.equal(whole, real) and whole.dtype == torch.float32
    alone, several = (grpo.group_advantages(torch.ones(2, G, dtype=torch.float64)) for G in (1, 3))
    assert alone.dtype == several.dtype == torch.float64


def test_one_axis_is_one_group_and_what_is_no_number_is_refused():
    rewards = torch.tensor([6.0, 2.0, 2.0, 2.0])
    assert torch.equal(grpo.group_advantages(rewards), grpo.group_advantages(rewards[None])[0])
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="not a finite number"):
            grpo.group_advantages(torch.tensor([[1.0, bad]]))


def test_predicting_states_point_at_the_state_before():
    """Against the definition: the state before a token in a row of its own, found again in the packed row."""
    prompt, completions = torch.arange(100, 104), [torch.tensor([1]), torch.tensor([2, 3, 4]), torch.tensor([5, 6])]
    ids, positions, visible = grpo.pack_group(prompt, completions)
    states = grpo.predicting_states(4, [1, 3, 2])
    before = [(ids[s].item(), positions[s].item()) for s in states]
    assert before == [(103, 3), (103, 3), (2, 4), (3, 5), (103, 3), (5, 4)]
    assert grpo.predicting_states(4, [1, 0, 2], between=2).tolist() == [3, 3, 9]


# ------------------------------------------------------------------------------------------------- sampling, text alone


def text_model(kind: str):
    import transformers as hf

    torch.manual_seed(0)
    sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = {"llama": hf.LlamaConfig, "qwen2": hf.Qwen2Config}[kind](num_key_value_heads=2, **sizes)
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():  # at initialisation the layers hardly matter
        for p in model.parameters():
            p.mul_(4.0 if p.ndim > 1 else 1.0)
    return model.eval()


PROMPTS = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12], [0, 3, 4, 3, 4]])
MASK = (PROMPTS > 0).long()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("segment,large", [(1, 2**18), (3, 2**18), (3, 1), (16, 2**18)])
@torch.no_grad()
def test_text_models_draw_what_a_slow_twin_draws(kind, segment, large, monkeypatch):
    """Left padding, no positions given, rows that end: every token from a forward over its own sequence alone."""
    model, packed = text_model(kind), []
    monkeypatch.setattr(grpo, "LARGE", large)  # 1: all matrices are packed for drawing
    if torch.backends.mkldnn.is_available():
        pack = torch.ops.mkldnn._reorder_linear_weight
        counted = SimpleNamespace(
            _reorder_linear_weight=lambda *a: packed.append(1) or pack(*a),
            _linear_pointwise=torch.ops.mkldnn._linear_pointwise,
        )
        monkeypatch.setattr(torch.ops, "mkldnn", counted)
    uniforms = torch.rand(3, 4, 12, generator=torch.Generator().manual_seed(2))
    ends = [7, 11, 30, 31, 32, 33]
    got = grpo.sample(
        model,
        {"input_ids": PROMPTS, "attention_mask": MASK},
        uniforms,
        num_generations=4,
        max_new_tokens=12,
        eos_token_id=ends,
        banned_ids=[0],
        segment=segment,
    )
    assert len(packed) == (2 * 7 + 1 if large == 1 and torch.backends.mkldnn.is_available() else 0)
    assert not any("forward" in vars(module) for module in model.modules())
    lengths = got.mask.sum(-1)
    for p in range(3):
        for g in range(4):
            row = PROMPTS[p][MASK[p].bool()]
            for t in range(12):
                logits = model(input_ids=row[None]).logits[:, -1].index_fill(-1, torch.tensor([0]), -torch.inf)
                token, logp = grpo.pick_tokens(logits, uniforms[p, g, t : t + 1])
                assert got.ids[p, g, t] == token and got.logp[p, g, t].item() == pytest.approx(logp.item(), abs=1e-4)
                row = torch.cat([row, token])
                if int(token) in ends:
                    break
            assert lengths[p, g] == t + 1
    assert 1 < lengths.float().mean() < 12 and lengths.max() > lengths.min()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_greedy_texts_equal_generate(kind):
    model = text_model(kind)
    how = dict(num_generations=1, max_new_tokens=12, temperature=0.0, eos_token_id=-1)
    got = grpo.sample(model, {"input_ids": PROMPTS, "attention_mask": MASK}, torch.zeros(3, 1, 12), **how)
    model.generation_config.eos_token_id = None
    theirs = model.generate(input_ids=PROMPTS, attention_mask=MASK, do_sample=False, max_new_tokens=12, pad_token_id=0)
    assert torch.equal(got.ids[:, 0], theirs[:, 5:])


@pytest.mark.parametrize(
    "name,words",
    [
        ("Mistral", "sliding window of 4096"),
        ("Gemma3Text", "layers of sliding_attention"),
        ("Gemma2", "layers of sliding_attention"),
        ("Qwen3Next", "layers of linear_attention"),
        ("GptOss", "layers of sliding_attention"),
        ("Mamba", "layers of linear_attention"),
        ("Cohere", "logit_scale"),
    ],
)
def test_models_that_a_packed_row_cannot_serve_are_refused_by_name(name, words):

    import transformers as hf

    model = SimpleNamespace(config=getattr(hf, f"{name}Config")())
    with pytest.raises(ValueError, match=words):
        grpo.require_plain_attention(model)
    with pytest.raises(ValueError, match=words):
        grpo.sample(model, {}, None, num_generations=1, max_new_tokens=1, eos_token_id=0)


def test_layers_past_the_registry_are_refused(monkeypatch):
    """Bloom's attention does not go through transformers' registry: it would see nothing of the prompt."""
    import transformers as hf

    model = hf.BloomForCausalLM(hf.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4))
    inputs = {"input_ids": PROMPTS, "attention_mask": MASK}
    with pytest.raises(ValueError, match="BloomForCausalLM does not attend through"):
        grpo.require_plain_attention(model)
    monkeypatch.setattr(grpo, "require_plain_attention", lambda model: None)
    with pytest.raises(
        ValueError, match="BloomForCausalLM cannot be sampled from here: its forward names no position_ids"
    ):
        grpo.sample(model, inputs, torch.zeros(3, 1, 4), num_generations=1, max_new_tokens=4, eos_token_id=-1)


def test_doges_own_masks_are_refused():
    """In transformers 5.17 nothing in its class says so, and a packed row was wrong by two nats."""
    import transformers as hf

    with torch.device("meta"):
        model = hf.DogeForCausalLM(hf.DogeConfig(num_hidden_layers=1))
    with pytest.raises(ValueError, match="DogeForCausalLM makes attention masks of its own"):
        grpo.require_plain_attention(model)


def test_a_prompt_that_is_seen_both_ways_is_refused():
    """PaliGemma's picture and prompt see one another both ways: packed, they would not, by nats and silently."""
    import transformers as hf

    with torch.device("meta"):
        model = hf.AutoModelForImageTextToText.from_config(hf.PaliGemmaConfig())
    with pytest.raises(ValueError, match="PaliGemmaForConditionalGeneration makes attention masks of its own"):
        grpo.require_plain_attention(model)


def test_pick_tokens_refuses_what_would_draw_nonsense():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    u = torch.tensor([0.5])
    for how in ({"temperature": -0.1}, {"top_p": 0.0}, {"top_p": -1.0}, {"top_p": 1.5}, {"temperature": math.nan}):
        with pytest.raises(ValueError, match="must be at least 0"):
            grpo.pick_tokens(logits, u, **how)
    for bad in (torch.tensor([[0.0, torch.nan, 1.0]]), torch.full((1, 3), -torch.inf)):
        for temperature in (0.0, 1.0):
            with pytest.raises(ValueError, match="NaN"):
                grpo.pick_tokens(bad, u, temperature)


def test_uniforms_of_64_bits_next_to_one_draw_no_vanishing_token():
    """0.99999999999 is 1 in 32 bits; the token that it would take has a probability of e-40."""
    logits = torch.tensor([[0.0, 0.0, -40.0]])
    almost = torch.tensor([1 - 1e-12], dtype=torch.float64)
    assert grpo.pick_tokens(logits, almost)[0].item() == 1


# -------------------------------------------------------------------------------------------- a borrower's accidents


def test_scaled_logits_and_a_biased_head_are_refused():
    """Granite divides its logits, Phi adds a bias: sampling would be right and the packed scores wrong by nats."""
    import transformers as hf

    granite = hf.AutoModelForCausalLM.from_config(
        hf.GraniteConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=1, logits_scaling=8.0)
    )
    phi = hf.AutoModelForCausalLM.from_config(
        hf.PhiConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    )
    for model, words in ((granite, "logits_scaling 8"), (phi, "a bias on its output layer")):
        with pytest.raises(ValueError, match=words):
            grpo.require_plain_attention(model)


def test_sampling_refuses_padding_without_a_mask_and_no_end():
    model = text_model("llama")
    how = dict(num_generations=1, max_new_tokens=2)
    model.config.pad_token_id = 0
    with pytest.raises(ValueError, match="no attention_mask"):
        grpo.sample(model, {"input_ids": PROMPTS}, torch.zeros(3, 1, 2), eos_token_id=-1, **how)
    with pytest.raises(ValueError, match="eos_token_id is empty"):
        grpo.sample(model, {"input_ids": PROMPTS, "attention_mask": MASK}, torch.zeros(3, 1, 2), eos_token_id=[], **how)


def test_training_flags_of_single_modules_come_back():
    model = text_model("llama").train()
    model.model.norm.eval()
    inputs = {"input_ids": PROMPTS, "attention_mask": MASK}
    grpo.sample(model, inputs, torch.zeros(3, 1, 2), num_generations=1, max_new_tokens=2, eos_token_id=-1)
    assert model.training and not model.model.norm.training and model.model.layers.training


def test_shapes_and_numbers_that_would_pass_in_silence():
    with pytest.raises(ValueError, match=r"rewards \(2, 3, 1\)"):
        grpo.group_advantages(torch.ones(2, 3, 1))
    with pytest.raises(ValueError, match="of bools, or of 0 and 1"):
        grpo.token_weights(torch.tensor([[[5, 7, 0]]]))
    assert grpo.token_weights(torch.tensor([[[1, 1, 0]]])).tolist() == [[[0.5, 0.5, 0]]]
    with pytest.raises(ValueError, match="5 states for 3 targets"):
        grpo.token_logprobs(torch.zeros(5, 4), torch.zeros(9, 4), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="at temperature 0"):
        grpo.token_logprobs(torch.zeros(3, 4), torch.zeros(9, 4), torch.zeros(3, dtype=torch.long), temperature=0)
    x = torch.zeros(1, 2, 3)
    for how in ({"beta": -0.1}, {"beta": math.nan}, {"clip_low": 1.2}, {"clip_low": -0.2}, {"clip_high": -0.1}):
        with pytest.raises(ValueError, match="out of range"):
            grpo.grpo_loss(x, x, x, torch.zeros(1, 2), x, **how)
    with pytest.raises(ValueError, match="old_logp is missing"):
        grpo.grpo_loss(x, None, x, torch.zeros(1, 2), x)


def test_scores_of_large_keys_keep_their_differences_in_16_bits():
    """Keys with an offset that all share, as Qwen2.5's biases make them: the softmax does not see it, and products
    rounded to bfloat16 lose everything else (relative error 0.7 at this size)."""
    P, G, S, kv, r, d = 2, 3, 40, 2, 2, 16
    draw = torch.Generator().manual_seed(0)
    offset = torch.zeros(d).index_fill(0, torch.tensor([3]), 150.0)
    layer = DynamicLayer()  # of transformers' cache
    keys, values = ((torch.randn(P, kv, S, d, generator=draw) + x).bfloat16() for x in (offset, 0.0))
    layer.update(keys, values)
    seen = grpo.PromptOnce([layer], torch.ones(P, S), G)
    seen.grow(4)
    seen.own_bias.index_fill_(0, seen.place, 0.0)
    query = (torch.randn(P * G, kv * r, 1, d, generator=draw) + offset).bfloat16()
    key, value = ((torch.randn(P * G, kv, 1, d, generator=draw) + x).bfloat16() for x in (offset, 0.0))
    got, _ = seen.attend(SimpleNamespace(layer_idx=0), query, key, value, None)
    for row in range(P * G):
        k, v = (
            torch.cat([a[row // G], b[row]], 1).double().repeat_interleave(r, 0)
            for a, b in ((keys, key), (values, value))
        )
        exact = (query[row].double() @ k.mT * d**-0.5).softmax(-1) @ v
        assert (query[row].double() @ k.mT).max() > 20_000
        assert (got[row, 0].double() - exact[:, 0]).norm() < 0.02 * exact.norm()
