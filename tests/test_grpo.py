"""The algorithm against slow twins: float64 loops written from the equations, and brute-force sampling."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

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
    assert metrics["clip_low"] > 0 and metrics["clip_high"] > 0


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
    assert m["clip_high"].item() == float(cut and A > 0) and m["clip_low"].item() == float(cut and A < 0)


def test_ratio_is_exactly_one_on_the_first_update():
    logp = (-torch.rand(2, 3, 5) * 9).requires_grad_()
    _, m = grpo.grpo_loss(logp, logp.detach(), None, torch.randn(2, 3), grpo.token_weights(torch.ones(2, 3, 5).bool()))
    assert m["ratio"].item() == pytest.approx(1, abs=1e-6) and m["clip_low"] == 0 and m["clip_high"] == 0


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
    ids, positions, mask = grpo.pack_group(torch.tensor([7, 8]), [torch.tensor([1]), torch.tensor([2, 3])])
    assert ids.tolist() == [7, 8, 1, 2, 3] and positions.tolist() == [0, 1, 2, 2, 3]
    assert mask.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]


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
    """Flat tokens need an advantage each and a last axis; another G would be drawn from the wrong noise."""
    flat = torch.zeros(6)
    with pytest.raises(ValueError, match="one per completion"):
        grpo.grpo_loss(flat, flat, None, torch.ones(6), flat)
    loss, _ = grpo.grpo_loss(flat[:, None], flat[:, None], None, torch.ones(6), torch.full((6, 1), 1 / 6))
    assert loss.item() == pytest.approx(-1)
    inputs = {"input_ids": torch.zeros(2, 3, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"uniforms \(2, 3, 8\) are fewer"):
        grpo.sample(None, inputs, torch.zeros(2, 3, 8), num_samples=4, max_new_tokens=8, eos_token_id=0)


def test_advantages_of_whole_numbers():
    whole, real = (grpo.group_advantages(torch.tensor([[6, 2, 2, 2]], dtype=d)) for d in (torch.long, torch.float32))
    assert torch.equal(whole, real) and whole.dtype == torch.float32
    alone, several = (grpo.group_advantages(torch.ones(2, G, dtype=torch.float64)) for G in (1, 3))
    assert alone.dtype == several.dtype == torch.float64
