"""Algorithm 1 against plain arithmetic and against torch's Adam; centers that survive everything."""

import copy
import io
import math
import pickle

import pytest
import torch

from modmem.projected_adam import ProjectedAdam
from modmem.projection import L2Ball, LinfBall, make_ball

torch.set_num_threads(1)


def make_network(seed=0):
    "A network with 121 weights and a batch to fit."
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3, bias=False), torch.nn.Tanh())
    return network.append(torch.nn.LayerNorm(3, bias=False)), torch.randn(20, 6), torch.randn(20, 3)


def train(network, optimizer, inputs, targets, num_steps):
    "Take `num_steps` steps on one batch."
    for _ in range(num_steps):
        optimizer.zero_grad()
        ((network(inputs) - targets) ** 2).mean().backward()
        optimizer.step()


def flat(network):
    "All weights as one vector."
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach()


def make_weights(*values):
    "One parameter of one weight for each value."
    return [torch.nn.Parameter(torch.tensor([value])) for value in values]


def step_with(optimizer, *gradients):
    "Take a step with these gradients, one for each parameter."
    for weight, gradient in zip(optimizer.weights, gradients):
        weight.grad = None if gradient is None else torch.full_like(weight, gradient)
    optimizer.step()


def algorithm_1(theta_0, gradients, lr, radius, epsilon_placement, betas=(0.9, 0.999), epsilon=1e-8):
    "Algorithm 1 in an L-infinity ball as plain arithmetic, epsilon 'before' (paper) or 'after' (torch) bias correction."
    theta, m, v = theta_0.clone(), torch.zeros_like(theta_0), torch.zeros_like(theta_0)
    for t, gradient in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * gradient
        v = betas[1] * v + (1 - betas[1]) * gradient**2
        m_scale, v_scale = 1 / (1 - betas[0] ** t), 1 / math.sqrt(1 - betas[1] ** t)
        if epsilon_placement == "before":
            direction = m_scale / v_scale * m / (torch.sqrt(v) + epsilon)
        else:
            direction = m_scale * m / (v_scale * torch.sqrt(v) + epsilon)
        theta = theta - lr * direction
        theta = torch.minimum(torch.maximum(theta, theta_0 - radius), theta_0 + radius)
    return theta


def test_one_scalar_step_by_hand():
    [weight] = make_weights(1.0)
    optimizer = ProjectedAdam([weight], LinfBall(0.05), lr=0.1)
    step_with(optimizer, 2.0)
    assert weight.item() == pytest.approx(0.95)  # Adam alone would go to 0.9
    state = optimizer.state[weight]
    assert state["exp_avg"].item() == pytest.approx(0.2) and state["exp_avg_sq"].item() == pytest.approx(0.004)


@pytest.mark.parametrize("gradient, paper, torchs", [(1e-6, 7.60e-4, 9.90e-4), (1.0, 1e-3, 1e-3)])
def test_the_first_step_under_both_conventions_of_epsilon(gradient, paper, torchs):
    start, gradients = torch.zeros(1, dtype=torch.float64), [torch.tensor([gradient], dtype=torch.float64)]
    weight = torch.nn.Parameter(start.clone())
    step_with(ProjectedAdam([weight], LinfBall(1.0)), gradient)
    assert -algorithm_1(start, gradients, 1e-3, 1.0, "before").item() == pytest.approx(paper, rel=5e-4)
    assert -algorithm_1(start, gradients, 1e-3, 1.0, "after").item() == pytest.approx(torchs, rel=5e-4)
    assert -weight.item() == pytest.approx(torchs, rel=5e-4)


@pytest.mark.parametrize("radius", [2e-3, math.inf])
def test_many_steps_are_algorithm_1_with_epsilon_where_torch_has_it(radius):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(30, generator=generator, dtype=torch.float64)
    gradients = [1e-6 * torch.randn(30, generator=generator, dtype=torch.float64) for _ in range(40)]
    weight = torch.nn.Parameter(start.clone())
    optimizer = ProjectedAdam([weight], LinfBall(radius), lr=1e-3, betas=(0.8, 0.99), eps=1e-7)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    ours, paper = (algorithm_1(start, gradients, 1e-3, radius, place, (0.8, 0.99), 1e-7) for place in ("after", "before"))
    torch.testing.assert_close(weight.detach(), ours, rtol=0, atol=1e-14)
    assert (weight.detach() - paper).abs().max() > 1e-4
    if radius < math.inf:
        assert 0.1 < optimizer.ball.face_share([weight], optimizer.centers) < 1


@pytest.mark.parametrize("norm", ["linf", "l2", "l2_tensor", "l2_tensor_rms"])
@pytest.mark.parametrize("radius", [math.inf, 5.0])
def test_a_radius_that_is_never_reached_is_torchs_adam_in_every_bit(norm, radius):
    network, inputs, targets = make_network()
    reference = copy.deepcopy(network)
    train(reference, torch.optim.Adam(reference.parameters()), inputs, targets, 50)
    train(network, ProjectedAdam(network.parameters(), make_ball(norm, radius)), inputs, targets, 50)
    assert torch.equal(flat(network), flat(reference))


@pytest.mark.parametrize("amsgrad", [False, True])
def test_weights_of_several_pieces_get_torchs_bits_and_the_box_of_each(amsgrad):
    def run(make):
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((601, 500), (7,), (2**18 + 1,))]
        weights.append(torch.randn(500, 601, generator=generator).T.requires_grad_())  # in no one row: left whole
        optimizer = make([{"params": weights, "amsgrad": amsgrad}])
        for step in range(5):
            for weight in weights[step == 2 :]:  # the first has no gradient once
                weight.grad = torch.randn(weight.shape, generator=generator)
            weights[0].grad = None if step == 2 else weights[0].grad
            optimizer.step()
        return weights, optimizer

    (expected, adam), (free, _) = run(torch.optim.Adam), run(lambda params: ProjectedAdam(params, LinfBall(math.inf)))
    assert all(torch.equal(*pair) for pair in zip(free, expected))
    held, optimizer = run(lambda params: ProjectedAdam(params, LinfBall(1e-3)))
    assert optimizer.ball.face_share(held, optimizer.centers) > 0.3
    for weight, center, reference in zip(held, optimizer.centers, expected):
        assert torch.equal(weight.clamp(center - 1e-3, center + 1e-3), weight)
        ours, theirs = optimizer.state[weight], adam.state[reference]
        assert ours["step"] == theirs["step"] and torch.equal(ours["exp_avg_sq"], theirs["exp_avg_sq"])


@pytest.mark.parametrize("center", [0.0, 0.05, 1.0, 300.0])
def test_no_weight_leaves_the_box_by_more_than_float32_can_say(center):
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(center * torch.randn(500, generator=generator))
    original = weight.detach().clone()
    optimizer = ProjectedAdam([weight], LinfBall(1e-3), lr=3e-4)
    for _ in range(100):
        weight.grad = torch.randn(500, generator=generator) + 0.5
        optimizer.step()
        assert torch.equal(weight.clamp(original - 1e-3, original + 1e-3), weight)
    over = (weight.double() - original.double()).abs() - 1e-3
    assert (over <= 2**-24 * weight.double().abs() + 1e-10).all()
    assert optimizer.ball.face_share([weight], optimizer.centers) > 0.05


def test_the_projection_does_not_touch_the_moments():
    weights = make_weights(1.0, 1.0)
    free, boxed = ProjectedAdam(weights[:1], LinfBall(math.inf), lr=0.1), ProjectedAdam(weights[1:], LinfBall(0.05), lr=0.1)
    for gradient in (2.0, -1.0, 3.0):
        step_with(free, gradient), step_with(boxed, gradient)
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(free.state[weights[0]][name], boxed.state[weights[1]][name])
    assert weights[0].item() != weights[1].item()


def test_a_joint_l2_ball_spans_the_groups():
    ends = {}
    for scope in ("joint", "tensor"):
        first, second = make_weights(0.0, 0.0)
        groups = [{"params": [first], "lr": 0.3}, {"params": [second], "lr": 0.4}]
        step_with(ProjectedAdam(groups, L2Ball(0.1, scope)), -1.0, -1.0)
        ends[scope] = [first.item(), second.item()]
    assert ends["joint"] == pytest.approx([0.06, 0.08]) and ends["tensor"] == pytest.approx([0.1, 0.1])


def test_a_parameter_without_gradient_stays_but_counts_in_the_norm():
    moving, still = make_weights(0.0, 0.6)
    optimizer = ProjectedAdam([moving, still], L2Ball(1.0), lr=0.8, centers=[torch.zeros(1), torch.zeros(1)])
    step_with(optimizer, -1.0, None)
    assert moving.item() == pytest.approx(0.8) and still.item() == pytest.approx(0.6)
    step_with(optimizer, -1.0, None)
    assert math.hypot(moving.item(), still.item()) == pytest.approx(1.0) and still.item() < 0.6
    assert still not in optimizer.state


def test_centers_are_copies_of_the_parameters_or_of_what_was_given():
    [weight], given = make_weights(1.0), [torch.tensor([1.02])]
    default, explicit = ProjectedAdam([weight], LinfBall(0.05), lr=0.1), ProjectedAdam([weight], LinfBall(0.05), lr=0.1, centers=given)
    given[0].fill_(7.0)
    with torch.no_grad():
        weight.fill_(3.0)
    assert default.centers[0].item() == 1.0 and explicit.centers[0].item() == pytest.approx(1.02)
    step_with(explicit, 1.0)
    assert weight.item() == pytest.approx(1.07)
    step_with(default, -1.0)
    assert weight.item() == pytest.approx(1.05)


@pytest.mark.parametrize("centers", [[], [torch.zeros(2)] * 2, [torch.zeros(3)], [torch.zeros(1)], [torch.zeros(2, dtype=torch.float64)]])
def test_centers_that_do_not_fit_the_parameters_are_refused(centers):
    with pytest.raises(ValueError):
        ProjectedAdam([torch.nn.Parameter(torch.zeros(2))], LinfBall(1.0), centers=centers)


def test_half_precision_and_tensors_listed_twice_are_refused_at_construction():
    with pytest.raises(ValueError, match="bfloat16"):
        ProjectedAdam([torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))], LinfBall(1.0))
    weight = torch.nn.Parameter(torch.zeros(2))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="twice"):
        ProjectedAdam([weight, weight], LinfBall(1.0))


@pytest.mark.parametrize("radius", ["1", "1e-3", None])
def test_a_radius_that_is_no_number_never_becomes_no_constraint(radius):
    with pytest.raises(ValueError):
        ProjectedAdam(make_weights(1.0), LinfBall(radius))


@pytest.mark.parametrize("norm, radius", [("linf", 5e-3), ("l2", 0.03)])
def test_a_fresh_optimizer_with_the_saved_state_continues_bit_for_bit(norm, radius):
    network, inputs, targets = make_network()
    ball, half = make_ball(norm, radius), copy.deepcopy(network)
    train(network, ProjectedAdam(network.parameters(), ball), inputs, targets, 30)
    optimizer = ProjectedAdam(half.parameters(), ball)
    train(half, optimizer, inputs, targets, 15)
    file = io.BytesIO()
    torch.save({"weights": half.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, _, _ = make_network(seed=1)
    resumed.load_state_dict(saved["weights"])
    fresh = ProjectedAdam(resumed.parameters(), ball)
    fresh.load_state_dict(saved["optimizer"])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(fresh.centers, optimizer.centers))
    train(resumed, fresh, inputs, targets, 15)
    assert torch.equal(flat(resumed), flat(network))
    assert ball.face_share(fresh.weights, fresh.centers) > 0.5


def test_a_state_saved_before_the_first_step_holds_the_centers():
    first, second = make_weights(1.0), make_weights(2.0)
    optimizer = ProjectedAdam(second, LinfBall(0.5))
    optimizer.load_state_dict(ProjectedAdam(first, LinfBall(0.5)).state_dict())
    step_with(optimizer, 1.0)
    assert second[0].item() == 1.5


def test_a_loaded_state_is_a_copy():
    [weight] = make_weights(1.0)
    source, target = ProjectedAdam([weight], LinfBall(0.5)), ProjectedAdam([weight], LinfBall(0.5))
    target.load_state_dict(source.state_dict())
    source.centers[0].fill_(9.0)
    assert target.centers[0].item() == 1.0


def test_a_state_of_another_optimizer_or_of_other_shapes_is_refused_and_changes_nothing():
    weights = make_weights(1.0)
    optimizer = ProjectedAdam(weights, LinfBall(0.5))
    with pytest.raises(ValueError, match="centers"):
        optimizer.load_state_dict(torch.optim.Adam(weights).state_dict())
    other = ProjectedAdam([torch.nn.Parameter(torch.zeros(3))], LinfBall(0.5), lr=9.0)
    with pytest.raises(ValueError):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.centers[0].tolist() == [1.0] and optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_deepcopy_and_pickle_keep_ball_and_centers(duplicate):
    weights = make_weights(1.0, 2.0)
    optimizer = ProjectedAdam(weights, LinfBall(0.05), lr=0.1)
    step_with(optimizer, 1.0, -1.0)
    copied_weights, copied = duplicate((weights, optimizer))
    assert copied.ball == LinfBall(0.05) and copied.weights[0] is copied_weights[0]
    for one in (optimizer, copied):
        step_with(one, 1.0, -1.0)
    assert [weight.item() for weight in copied_weights] == [weight.item() for weight in weights] == pytest.approx([0.95, 2.05])
    copied.centers[0].fill_(9.0)
    assert optimizer.centers[0].item() == 1.0


def test_closures_are_evaluated_with_gradients_and_their_loss_is_returned():
    [weight] = make_weights(1.0)
    optimizer = ProjectedAdam([weight], LinfBall(0.05), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0 and weight.item() == pytest.approx(0.95)


def test_schedulers_set_the_learning_rate():
    [weight] = make_weights(0.0)
    optimizer = ProjectedAdam([weight], LinfBall(10.0), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1**step)
    for _ in range(3):
        step_with(optimizer, -1.0)
        scheduler.step()
    assert weight.item() == pytest.approx(1.11)


def test_step_hooks_run_once_and_see_projected_weights():
    [weight], seen = make_weights(1.0), []
    torch.optim.Adam(make_weights(1.0))  # from now on torch's own Adam.step runs hooks as well
    optimizer = ProjectedAdam([weight], LinfBall(0.05), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: seen.append(weight.item()))
    step_with(optimizer, 1.0)
    assert seen == pytest.approx([0.95])


def test_a_group_added_later_is_centered_at_its_values_then():
    first, second = make_weights(1.0, 2.0)
    optimizer = ProjectedAdam([first], LinfBall(0.05), lr=0.1)
    step_with(optimizer, 1.0)
    with torch.no_grad():
        second.fill_(3.0)
    optimizer.add_param_group({"params": [second]})
    step_with(optimizer, 1.0, 1.0)
    assert [first.item(), second.item()] == pytest.approx([0.95, 2.95])


def test_weight_decay_which_pulls_to_zero_is_refused_and_changes_nothing():
    weight, other = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="weight_decay.*0.1"):
        ProjectedAdam([{"params": [weight], "weight_decay": 0.1}], LinfBall(1.0))
    optimizer = ProjectedAdam([{"params": [weight], "weight_decay": 0}], LinfBall(1.0))
    with pytest.raises(ValueError, match="weight_decay.*0.1"):
        optimizer.add_param_group({"params": [other], "weight_decay": 0.1})
    assert optimizer.weights == [weight] and len(optimizer.centers) == 1


def test_named_parameters_are_accepted():
    network, inputs, targets = make_network()
    optimizer = ProjectedAdam(network.named_parameters(), LinfBall(1e-3))
    train(network, optimizer, inputs, targets, 3)
    assert optimizer.ball.face_share(optimizer.weights, optimizer.centers) > 0.9


def test_twenty_edits_stay_in_the_first_ball_only_with_the_first_centers():
    ends = {}
    for anchor in ("first", "latest"):
        generator = torch.Generator().manual_seed(0)
        weight, shared_gradient = torch.nn.Parameter(torch.zeros(200)), torch.randn(200, generator=generator)
        original = weight.detach().clone()
        for _ in range(20):
            optimizer = ProjectedAdam([weight], LinfBall(0.01), lr=0.002, centers=[original] if anchor == "first" else None)
            for _ in range(10):
                weight.grad = shared_gradient + 0.3 * torch.randn(200, generator=generator)
                optimizer.step()
        ends[anchor] = (weight - original).abs().mean().item() / 0.01
    assert ends["first"] <= 1 + 1e-6 and ends["latest"] == pytest.approx(18, abs=1)


def test_growing_gradients_can_carry_adam_beyond_learning_rate_times_steps():
    [weight] = make_weights(0.0)
    optimizer = ProjectedAdam([weight], LinfBall(math.inf), lr=1e-3)
    for step in range(100):
        step_with(optimizer, -((0.999 / 0.9) ** step))
    assert 1.5 < weight.item() / (100 * 1e-3) < 1.7
