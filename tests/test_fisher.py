"""The Fisher information as the mean of squares, the nearest point of its ellipsoid, and edits that are held or charged by it."""
import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from tiny_models import TINY, WORLD, assert_untouched, same_bits, same_weights, snapshot, tiny_bert
from torch import nn

from modmem.blocks import select_parameters
from modmem.constraints import CONSTRAINTS, PENALTIES, PenalizedConfig, RelativeLinfBall, modify_constrained, modify_penalized
from modmem.editor import ModificationConfig
from modmem.finetuning import finetune
from modmem.fisher import KINDS, FisherBall, estimate_fisher, fisher_norm, mean_squared_gradient, project_fisher, solve_multiplier
from modmem.masked_lm import copy_with_own
from modmem.modification import ModifiedBenchmark, sample_modifications
from modmem.penalties import ewc_penalty, kl_penalty
from modmem.projection import BALLS, L2Ball, project_l2

MODIFIED = sample_modifications(WORLD, num_modified=6, seed=0)
FEW = ModifiedBenchmark(**vars(MODIFIED) | {"unmodified_train": MODIFIED.unmodified_train[::15]})
CONFIG = ModificationConfig(blocks=1, radius=4e-3, learning_rate=1e-3, steps=8, batch_size=16)
FISHER_NORMS = {"fisher": "empirical", "fisher_newton": "empirical", "fisher_true": "true", "fisher_batch": "batch", "fisher_batch_newton": "batch"}


@pytest.fixture(scope="module")
def bert():
    return tiny_bert()


def draw(count, dtype=torch.float64, seed=0, spread=3.0):
    "A change, and a Fisher information over many orders of magnitude."
    generator = torch.Generator().manual_seed(seed)
    change = torch.randn(count, generator=generator, dtype=dtype)
    return change, (spread * torch.randn(count, generator=generator, dtype=dtype)).exp()


# the estimate


def test_of_a_logistic_regression_the_formula_and_a_batch_is_another_thing():
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    chances = (inputs @ weights.detach()).sigmoid()
    expected = (chances * (1 - chances))[:, None].mul(inputs.square()).mean(0)
    labels = (torch.arange(400) < (400 * chances).round()[:, None]).double()  # as often as the model says: its optimum
    order = torch.randperm(labels.numel(), generator=generator)
    inputs, labels = inputs.repeat_interleave(400, 0)[order], labels.flatten()[order]

    def loss(start, size):
        part = slice(start, start + size)
        return nn.functional.binary_cross_entropy_with_logits(inputs[part] @ weights, labels[part])

    (each,) = mean_squared_gradient((loss(start, 1) for start in range(len(inputs))), [weights])
    torch.testing.assert_close(each, expected, rtol=0.01, atol=0)
    (batch,) = mean_squared_gradient((loss(start, 128) for start in range(0, len(inputs), 128)), [weights])
    torch.testing.assert_close(batch * 128, expected, rtol=0.5, atol=0)


def test_the_true_fisher_is_the_expectation_over_the_model_s_own_answers(bert):
    names = [name for name in select_parameters(bert, 2) if name.endswith("output.dense.bias")]
    prompt = next(one for one in MODIFIED.unmodified_train if len(bert.encode([one])[0].slots) == 1)
    batch, copied = bert.batch(bert.encode([prompt])), copy_with_own(bert, names)
    weights, (logs,) = [dict(copied.model.named_parameters())[name] for name in names], copied(batch).log_softmax(-1)
    squares = [[one.square() for one in torch.autograd.grad(log, weights, retain_graph=True)] for log in logs]
    expected = [sum(chance * one for chance, one in zip(logs.exp().tolist(), column)) for column in zip(*squares)]
    found = estimate_fisher(bert, [prompt] * 500, names, "true", num_examples=500, damping=0)
    empirical = estimate_fisher(bert, [prompt], names, "empirical", damping=0)
    for true, other, exact, at_label in zip(found, empirical, expected, squares[batch.labels.item()]):
        assert (true - exact).norm() < 0.2 * exact.norm()
        torch.testing.assert_close(other, at_label, rtol=1e-3, atol=1e-9)


def test_batches_average_before_they_square(bert):
    names, evidence = list(select_parameters(bert, 1)), MODIFIED.unmodified_train[:150]
    batch = estimate_fisher(bert, evidence, names, "batch", damping=0)
    empirical = estimate_fisher(bert, evidence, names, "empirical", damping=0)
    assert all(bool((one >= -1e-12).all()) for one in batch)
    assert sum(one.sum() for one in batch) < 0.9 * sum(one.sum() for one in empirical)


@pytest.mark.parametrize("kind", KINDS)
def test_an_estimate_leaves_the_model_alone_is_the_same_again_and_changes_with_the_seed(bert, kind):
    names = list(select_parameters(bert, 0))
    bert.model.train()  # dropout is off all the same
    before = snapshot(bert)
    try:
        first, second = (estimate_fisher(bert, MODIFIED.unmodified_train, names, kind, num_examples=5) for _ in range(2))
        assert_untouched(bert, before)
    finally:
        bert.model.eval()
    assert all(same_bits(one, other) for one, other in zip(first, second))
    other = estimate_fisher(bert, MODIFIED.unmodified_train, names, kind, num_examples=5, seed=1)
    assert not torch.equal(first[0], other[0])
    if kind == "true":  # the model's answers are drawn, too
        one, again, other = (estimate_fisher(bert, MODIFIED.unmodified_train[:1] * 5, names, kind, seed=seed)[0] for seed in (0, 0, 1))
        assert torch.equal(one, again) and not torch.allclose(one, other, rtol=1e-3, atol=0)
    assert [one.shape for one in first] == [dict(bert.model.named_parameters())[name].shape for name in names]


def test_damping_adds_a_share_of_the_mean_over_all_weights(bert):
    names = list(select_parameters(bert, 0))
    bare, damped = (estimate_fisher(bert, MODIFIED.unmodified_train, names, num_examples=4, damping=share) for share in (0, 0.5))
    mean = torch.cat([one.flatten() for one in bare]).double().mean()
    for one, other in zip(bare, damped):
        torch.testing.assert_close(other, one + 0.5 * mean.float())


def test_an_unknown_kind_and_no_evidence_are_refused(bert):
    with pytest.raises(ValueError, match="'diagonal'"):
        estimate_fisher(bert, MODIFIED.unmodified_train, [], "diagonal")
    with pytest.raises(ValueError, match="unmodified"):
        estimate_fisher(bert, (), list(select_parameters(bert, 0)))


# the ellipsoid


@pytest.mark.parametrize("count", [1, 10, 1000, 300_000])
@pytest.mark.parametrize("excess", [1.0001, 2, 1e3, 1e6])
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_newton_is_feasible_and_optimal_within_ten_steps(count, excess, spread):
    change, fisher = draw(count, spread=spread)
    radius = math.sqrt((fisher * change.square()).sum().item() / excess)
    multiplier, steps = solve_multiplier(change, fisher, radius)
    projected = change / (1 + multiplier * fisher)
    assert steps <= 10 and multiplier > 0
    assert abs((fisher * projected.square()).sum().item() / radius**2 - 1) < 1e-9
    residual = projected - change + multiplier * fisher * projected  # of the Karush-Kuhn-Tucker conditions
    assert residual.abs().max() < 1e-10 * change.abs().max()


def test_the_projection_is_the_nearest_point_that_scipy_finds():
    change, fisher = draw(4, seed=3, spread=1.0)
    (ours,) = project_fisher([change], [torch.zeros(4, dtype=torch.float64)], [fisher], 0.7, "newton")
    y, f = change.numpy(), fisher.numpy()
    rule = {"type": "ineq", "fun": lambda d: 0.49 - np.sum(f * d**2), "jac": lambda d: -2 * f * d}
    found = optimize.minimize(lambda d: np.sum((d - y) ** 2), y * 0.1, jac=lambda d: 2 * (d - y), constraints=rule, method="SLSQP", options={"ftol": 1e-14, "maxiter": 500})
    np.testing.assert_allclose(ours.numpy(), found.x, atol=1e-5)


@pytest.mark.parametrize("projection", ["newton", "radial"])
def test_with_equal_information_it_is_the_l2_ball(projection):
    weights, centers = [torch.tensor([[3.0, 1.0]]), torch.tensor([4.0])], [torch.zeros(1, 2), torch.ones(1)]
    ones = [torch.ones_like(one) for one in weights]
    for ours, theirs in zip(project_fisher(weights, centers, ones, 0.5, projection), project_l2(weights, centers, 0.5)):
        torch.testing.assert_close(ours, theirs)


@given(radii=st.tuples(st.floats(0.01, 3), st.floats(0.01, 3)), seed=st.integers(0, 50), projection=st.sampled_from(["newton", "radial"]))
def test_a_larger_radius_lets_every_weight_go_further_and_inside_nothing_moves(radii, seed, projection):
    change, fisher = draw(20, seed=seed, spread=1.0)
    centers, small, large = [torch.zeros(20, dtype=torch.float64)], min(radii), max(radii)
    (near,), (far,) = (project_fisher([change], centers, [fisher], radius, projection) for radius in (small, large))
    assert (near.abs() <= far.abs() * (1 + 1e-9)).all() and (near * change >= 0).all()
    assert fisher_norm([near], centers, [fisher]) <= small * (1 + 1e-9)
    inside = near * 0.99
    (kept,) = project_fisher([inside], centers, [fisher], small, projection)
    assert torch.equal(kept, inside)


def test_the_radial_point_keeps_the_direction_and_is_nearest_in_the_fisher_metric():
    change, fisher = draw(30, spread=1.0)
    centers = [torch.zeros(30, dtype=torch.float64)]
    (radial,), (newton,) = (project_fisher([change], centers, [fisher], 1.0, projection) for projection in ("radial", "newton"))
    assert (radial / change).max() - (radial / change).min() < 1e-12
    assert fisher_norm([radial], [change], [fisher]) < fisher_norm([newton], [change], [fisher])
    assert (newton - change).norm() < (radial - change).norm()


@pytest.mark.parametrize("projection", ["newton", "radial"])
def test_the_ball_projects_in_place_across_tensors_and_tells_when_it_is_reached(projection):
    change, fisher = draw(12, torch.float32, spread=1.0)
    weights, centers = [change[:8].view(2, 4).clone(), change[8:].clone()], [torch.zeros(2, 4), torch.zeros(4)]
    ball = FisherBall(0.5, (fisher[:8].view(2, 4), fisher[8:]), projection)
    assert ball.face_share(centers, [center.clone() for center in centers]) == 0
    ball.project(weights, centers)
    assert fisher_norm(weights, centers, ball.fisher) == pytest.approx(0.5, rel=1e-5) and ball.face_share(weights, centers) == 1
    free = [change.clone()]
    FisherBall(math.inf, (fisher,), projection).project(free, [torch.zeros(12)])
    assert same_bits(free[0], change)


def test_what_is_no_fisher_ball_is_refused():
    ones = (torch.ones(2),)
    for bad in (0, None, "1e-3", math.nan):
        with pytest.raises(ValueError, match="radius"):
            FisherBall(bad, ones)
    with pytest.raises(ValueError, match="'exact'"):
        FisherBall(1.0, ones, "exact")
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="damping"):
            FisherBall(1.0, (torch.tensor([1.0, bad]),))
    with pytest.raises(ValueError):
        FisherBall(1.0, ones).project([torch.ones(3)], [torch.ones(3)])


# the relative box


def test_the_relative_box_follows_the_scale_of_each_tensor():
    weights, centers = [torch.tensor([9.0, 9.0]), torch.tensor([9.0]), torch.tensor([5.0])], [torch.tensor([3.0, -4.0]), torch.zeros(1), torch.tensor([5.0])]
    ball = RelativeLinfBall(0.1)
    ball.project(weights, centers)
    size = math.sqrt(12.5)
    torch.testing.assert_close(weights[0], torch.tensor([3 + 0.1 * size, -4 + 0.1 * size]))
    assert weights[1].item() == 0 and weights[2].item() == 5
    assert ball.face_share(weights, centers) == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match="'1'"):
        RelativeLinfBall("1")


# penalties


def test_the_ewc_gradient_is_that_of_its_formula():
    weights = [torch.randn(5, requires_grad=True), torch.randn(2, 3, requires_grad=True)]
    centers, fisher = ([torch.rand_like(one) for one in weights] for _ in range(2))
    loss = sum((3.0 / 2 * importance * (one - center).square()).sum() for one, center, importance in zip(weights, centers, fisher))
    expected = torch.autograd.grad(loss, weights)
    for one in weights:
        one.grad = torch.ones_like(one)
    ewc_penalty(centers, fisher, 3.0)(weights)
    for one, other in zip(weights, expected):
        torch.testing.assert_close(one.grad, 1 + other)


@pytest.mark.parametrize("family", TINY)
def test_the_kl_gradient_is_that_of_the_divergence_and_the_model_stays(family):
    masked_lm = TINY[family]()
    names = list(select_parameters(masked_lm, "all"))
    prompts, before = MODIFIED.unmodified_train[:6], snapshot(masked_lm)
    edited = copy_with_own(masked_lm, names)
    weights = [dict(edited.model.named_parameters())[name] for name in names]
    for one in weights:
        one.data += 0.01 * torch.randn_like(one)
    batch = masked_lm.batch(masked_lm.encode(prompts))
    own, now = masked_lm(batch).detach().softmax(-1), edited(batch)
    divergence = (own * (own.log() - now.log_softmax(-1))).sum() / len(prompts)
    expected = torch.autograd.grad(2.0 * divergence, weights)
    for one in weights:
        one.grad = torch.zeros_like(one)
    kl_penalty(masked_lm, names, prompts, 2.0)(weights)
    for one, other in zip(weights, expected):
        torch.testing.assert_close(one.grad, other, rtol=1e-3, atol=1e-5)
    assert_untouched(masked_lm, before)


def test_the_prompts_of_a_kl_penalty_are_as_many_as_asked_drawn_by_the_seed_and_taken_in_turns():
    masked_lm = tiny_bert()
    names = list(select_parameters(masked_lm, 2))
    edited = copy_with_own(masked_lm, names)
    weights = [dict(edited.model.named_parameters())[name] for name in names]
    for one in weights:
        one.data += 0.1

    def gradients(prompts, turns, **settings):
        penalty, found = kl_penalty(masked_lm, names, prompts, 1.0, **settings), []
        for _ in range(turns):
            for one in weights:
                one.grad = torch.zeros_like(one)
            penalty(weights)
            found.append(torch.cat([one.grad.flatten() for one in weights]))
        return found

    prompts = sorted(MODIFIED.unmodified_train[:12], key=lambda one: len(masked_lm.encode([one])[0]))
    each = [gradients([prompt], 1)[0] for prompt in prompts]
    drawn = [next(number for number, one in enumerate(each) if torch.allclose(one, gradients(prompts, 1, num_prompts=1, seed=seed)[0], rtol=1e-3, atol=1e-6)) for seed in range(6)]
    assert len(set(drawn)) > 1
    first, second, third = gradients(prompts[:3], 3, batch_size=2)
    torch.testing.assert_close(torch.stack([first, second]), torch.stack([(each[0] + each[1]) / 2, each[2]]), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(third, first, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bad", [0, -1.0, math.inf, math.nan, "1", True])
def test_a_weight_of_a_penalty_is_a_number_above_zero(bad):
    with pytest.raises(ValueError, match="weight"):
        ewc_penalty([], [], bad)


# edits


def edited_by(masked_lm, config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edit = (modify_penalized if isinstance(config, PenalizedConfig) else modify_constrained)(masked_lm, FEW, config)
    copied = copy_with_own(masked_lm)
    edit.apply(copied)
    return edit, copied


@pytest.mark.parametrize("norm", FISHER_NORMS)
def test_an_edit_stays_in_its_fisher_ball(bert, norm):
    kind = FISHER_NORMS[norm]
    names = list(select_parameters(bert, 1))
    fisher = estimate_fisher(bert, FEW.unmodified_train, names, kind, seed=3)
    config = replace(CONFIG, norm=norm, seed=3, radius=1e-3)
    ball = CONSTRAINTS[norm](bert, FEW, config)
    assert ball.projection == ("newton" if norm.endswith("newton") else "radial") and all(map(torch.equal, ball.fisher, fisher))
    edit, edited = edited_by(bert, config)
    now, base = (dict(one.model.named_parameters()) for one in (edited, bert))
    used = fisher_norm([now[name] for name in names], [base[name] for name in names], fisher)
    assert used == pytest.approx(1e-3, rel=1e-3) and edit.record["outcome"]["share_on_face"] == 1
    again, _ = edited_by(bert, ModificationConfig(**json.loads(json.dumps(edit.record["config"])) | {"radius": 1e-3}))
    assert again.record["edited_hash"] == edit.record["edited_hash"]


@pytest.mark.parametrize("norm", [*FISHER_NORMS, "linf_relative"])
def test_without_a_radius_every_norm_is_torchs_adam(bert, norm):
    config = replace(CONFIG, norm=norm, radius=math.inf)
    names = list(select_parameters(bert, 1))
    expected, _ = finetune(bert, MODIFIED.modified_train, config.finetuning, parameters=names, make_optimizer=torch.optim.Adam)
    assert same_weights(edited_by(bert, config)[1], expected)


@pytest.mark.parametrize(("penalty", "weights"), [("ewc", (1e-3, 1e4)), ("kl", (1e-3, 1e3))])
def test_a_higher_price_keeps_the_model_nearer(bert, penalty, weights):
    config = replace(CONFIG, radius=math.inf, steps=20)
    moved = []
    for weight in weights:
        _, edited = edited_by(bert, PenalizedConfig(config, penalty, weight))
        batch = bert.batch(bert.encode(FEW.unmodified_train))
        with torch.no_grad():
            now, before = edited(batch).log_softmax(-1), bert(batch).log_softmax(-1)
        moved.append(nn.functional.kl_div(now, before, reduction="batchmean", log_target=True).item())
    assert moved[1] < 0.5 * moved[0]


def test_a_penalty_works_once_a_step_and_within_the_ball(bert, monkeypatch):
    calls = []
    monkeypatch.setattr("modmem.constraints.kl_penalty", lambda *_, **__: lambda weights: calls.append([weight.grad is not None for weight in weights]))
    edit, _ = edited_by(bert, PenalizedConfig(CONFIG, "kl", 1.0))
    assert len(calls) == CONFIG.finetuning.steps and all(map(all, calls))
    assert edit.record["outcome"]["max_change"] < CONFIG.radius * (1 + 1e-5)
    plain, _ = edited_by(bert, CONFIG)
    assert plain.record["edited_hash"] == edit.record["edited_hash"]  # this price was nothing


def test_a_second_edit_is_measured_from_the_first_start(bert):
    _, once = edited_by(bert, replace(CONFIG, norm="fisher", radius=1e-3))
    edit = modify_constrained(once, FEW, replace(CONFIG, norm="fisher", radius=1e-3), anchor=bert)
    edit.apply(once)
    names = list(select_parameters(bert, 1))
    fisher = estimate_fisher(bert, FEW.unmodified_train, names)
    now, base = ([dict(one.model.named_parameters())[name] for name in names] for one in (once, bert))
    assert fisher_norm(now, base, fisher) <= 1e-3 * (1 + 1e-3)


def test_settings_that_do_not_go_together_are_refused(bert):
    with pytest.raises(ValueError, match="norm"):
        modify_constrained(bert, FEW, replace(CONFIG, norm="fischer"))
    for wrong, named in (("l2", 1.0), "penalty"), (("ewc", 0.0), "weight"), (("ewc", None), "weight"), ((None, 1.0), "penalty"):
        with pytest.raises(ValueError, match=named):
            PenalizedConfig(CONFIG, *wrong)
    assert set(CONSTRAINTS) == {*BALLS, "linf_relative", *FISHER_NORMS} and L2Ball(1.0).scope == "joint"
    alone = ModifiedBenchmark(**vars(MODIFIED) | {"unmodified_train": ()})
    with pytest.raises(ValueError, match="unmodified"):
        modify_constrained(bert, alone, replace(CONFIG, norm="fisher"))
    for penalty in ("ewc", "kl"):
        with pytest.raises(ValueError, match="unmodified"):
            modify_penalized(bert, alone, PenalizedConfig(CONFIG, penalty, 1.0))


def test_a_penalized_edit_says_what_it_paid_and_is_anchored_where_it_is_told(bert):
    config = PenalizedConfig(CONFIG, "ewc", 10.0)
    edit, once = edited_by(bert, config)
    assert edit.record["penalty"] == {"name": "ewc", "weight": 10.0}
    again = modify_penalized(once, FEW, config, anchor=bert)
    again.apply(once)
    pairs = zip(once.model.parameters(), bert.model.parameters())
    assert max((now - then).abs().max().item() for now, then in pairs) <= CONFIG.radius * 1.001


@pytest.mark.parametrize("penalty", ["ewc", "kl"])
def test_a_penalty_has_the_seed_and_the_batches_of_the_training(bert, monkeypatch, penalty):
    seen = []
    monkeypatch.setattr("modmem.constraints.estimate_fisher", lambda model, evidence, names, seed: seen.append({"seed": seed}) or [])
    monkeypatch.setattr("modmem.constraints.ewc_penalty", lambda *_: lambda weights: None)
    monkeypatch.setattr("modmem.constraints.kl_penalty", lambda *_, **settings: seen.append(settings) or (lambda weights: None))
    modify_penalized(bert, FEW, PenalizedConfig(replace(CONFIG, seed=5), penalty, 1.0))
    assert seen == [{"seed": 5} if penalty == "ewc" else {"seed": 5, "batch_size": 16}]


def test_ball_and_penalty_are_those_of_the_model_before_the_first_edit(bert, monkeypatch):
    seen = []
    monkeypatch.setitem(CONSTRAINTS, "fisher", lambda model, modified, config: seen.append(model) or L2Ball(math.inf))
    monkeypatch.setitem(PENALTIES, "ewc", lambda model, modified, config: seen.append(model) or (lambda weights: None))
    other = tiny_bert(seed=1)
    for anchor in (None, bert):
        modify_penalized(other, FEW, PenalizedConfig(replace(CONFIG, norm="fisher", radius=math.inf), "ewc", 1.0), anchor)
    assert [model is bert for model in seen] == [False, False, True, True]
