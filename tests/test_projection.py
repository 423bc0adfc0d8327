"""Invariants of the balls: nearest point, bitwise identity inside, radius and dtype checks."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from modmem.projection import (
    BALLS,
    L2Ball,
    LinfBall,
    check_radius,
    check_weights,
    describe_change,
    make_ball,
    project_l2,
    project_linf,
)

torch.set_num_threads(1)
NORMS = sorted(BALLS)
coordinates = st.lists(st.floats(-10, 10), min_size=3, max_size=3)
radii = st.floats(0.01, 20)


def random_weights(scale, dtype=torch.float32, seed=0):
    "Two tensors of weights, 40 and 7 of them, at a distance of about `scale` from their centers."
    generator = torch.Generator().manual_seed(seed)
    centers = [torch.randn(size, generator=generator, dtype=dtype) for size in ((8, 5), (7,))]
    changes = [scale * torch.randn(center.shape, generator=generator, dtype=dtype) for center in centers]
    return [center + change for center, change in zip(centers, changes)], centers


def vector(numbers):
    "One float64 tensor, in a list."
    return [torch.tensor(numbers, dtype=torch.float64)]


def project(norm, radius, point, center):
    "Project one float64 point, given and returned as a list of numbers."
    weights = vector(point)
    make_ball(norm, radius).project(weights, vector(center))
    return weights[0]


@pytest.mark.parametrize("bad", ["1", "1e-3", "inf", "", None, True, False, math.nan, 0, 0.0, -0.0, -1e-3, -math.inf, 1j, [1.0], b"1", torch.tensor(1.0)])
@pytest.mark.parametrize("make", [check_radius, LinfBall, L2Ball])
def test_a_radius_that_is_no_number_above_zero_is_refused_by_its_value(make, bad):
    with pytest.raises(ValueError) as error:
        make(bad)
    assert repr(bad) in str(error.value)


@pytest.mark.parametrize("good", [1, 1e-3, math.inf, np.float32(0.5), np.int64(2), Fraction(1, 3), np.float64("inf")])
def test_any_real_number_above_zero_is_a_radius_and_becomes_a_float(good):
    assert type(LinfBall(good).radius) is float and LinfBall(good).radius == float(good)


def test_a_radius_that_underflows_to_zero_is_refused():
    with pytest.raises(ValueError):
        check_radius(Fraction(1, 10**400))


def test_unknown_norms_and_scopes_are_refused_by_name():
    with pytest.raises(ValueError, match="'l3'"):
        make_ball("l3", 1.0)
    with pytest.raises(ValueError, match="'layer'"):
        L2Ball(1.0, scope="layer")


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=20, deadline=None)
@given(point=coordinates, center=coordinates, radius=radii)
def test_projection_is_the_nearest_point_that_scipy_finds(norm, point, center, radius):
    ours = project(norm, radius, point, center).numpy()
    point, center = np.array(point), np.array(center)
    if norm == "linf":
        limits = optimize.Bounds(center - radius, center + radius)
        rules = ()
    else:
        limits = None
        squared = radius**2 * (3 if norm == "l2_tensor_rms" else 1)
        rules = {"type": "ineq", "fun": lambda x: squared - np.sum((x - center) ** 2), "jac": lambda x: -2 * (x - center)}
    found = optimize.minimize(
        lambda x: np.sum((x - point) ** 2),
        center,
        jac=lambda x: 2 * (x - point),
        method="SLSQP",
        bounds=limits,
        constraints=rules,
        options={"ftol": 1e-14, "maxiter": 300},
    )
    np.testing.assert_allclose(ours, found.x, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=50, deadline=None)
@given(first=coordinates, second=coordinates, center=coordinates, radius=radii)
def test_projection_is_non_expansive_and_idempotent(norm, first, second, center, radius):
    near_first, near_second = project(norm, radius, first, center), project(norm, radius, second, center)
    apart = (near_first - near_second).norm().item()
    assert apart <= math.dist(first, second) + 1e-12
    again = project(norm, radius, near_first.tolist(), center)
    torch.testing.assert_close(again, near_first, rtol=0, atol=0 if norm == "linf" else 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_inside_the_ball_nothing_changes_in_any_bit(norm, dtype):
    weights, centers = random_weights(scale=0.5, dtype=dtype)
    weights[0][0, 0], centers[0][0, 0] = 1e-8, 1.0  # the difference is rounded: adding it again would give 0
    before = [weight.clone() for weight in weights]
    for radius in (20.0, math.inf):
        make_ball(norm, radius).project(weights, centers)
        assert all(torch.equal(weight, old) for weight, old in zip(weights, before))
        assert make_ball(norm, radius).face_share(weights, centers) == 0


@pytest.mark.parametrize("norm", NORMS)
def test_an_infinite_radius_leaves_even_huge_changes_alone(norm):
    weights, centers = random_weights(scale=1e20)
    before = [weight.clone() for weight in weights]
    make_ball(norm, math.inf).project(weights, centers)
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before))


def test_radius_zero_gives_the_centers_back_bitwise():
    weights, centers = random_weights(scale=1.0)
    assert all(torch.equal(project_linf(weight, center, 0), center) for weight, center in zip(weights, centers))
    assert all(torch.equal(projected, center) for projected, center in zip(project_l2(weights, centers, 0), centers))


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_linf_puts_weights_exactly_on_the_face(scale):
    weights, centers = random_weights(scale)
    inside = [(weight - center).abs() < 0.99e-2 for weight, center in zip(weights, centers)]
    before = [weight.clone() for weight in weights]
    ball = LinfBall(1e-2)
    ball.project(weights, centers)
    for weight, center, old, kept in zip(weights, centers, before, inside):
        on_face = (weight == center - 1e-2) | (weight == center + 1e-2)
        assert torch.equal(weight[kept], old[kept]) and on_face[~kept].all()
        assert torch.equal(torch.sign(weight - center), torch.sign(old - center))
    outside = sum((~kept).sum().item() for kept in inside)
    assert outside > 30 and ball.face_share(weights, centers) == outside / 47


def test_a_tensor_of_several_pieces_is_projected_as_a_whole_is():
    generator = torch.Generator().manual_seed(0)
    centers = [torch.randn(shape, generator=generator) for shape in ((601, 500), (2**18,), (2**18 + 1,))]
    centers.append(centers[0].T)
    weights = [center + 0.01 * torch.randn(center.shape, generator=generator) for center in centers]
    expected = [project_linf(weight, center, 0.01) for weight, center in zip(weights, centers)]
    LinfBall(0.01).project(weights, centers)
    assert all(torch.equal(*pair) for pair in zip(weights, expected))


def test_linf_oversteps_by_no_more_than_the_rounding_of_the_weight():
    weights, centers = random_weights(scale=1.0)
    LinfBall(1e-3).project(weights, centers)
    for weight, center in zip(weights, centers):
        over = (weight.double() - center.double()).abs() - 1e-3
        assert (over <= torch.finfo(torch.float32).eps / 2 * weight.double().abs() + 1e-10).all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_l2_shrinks_along_the_straight_line_to_the_face(dtype, tolerance):
    weights, centers = random_weights(scale=1.0, dtype=dtype)
    changes = [weight - center for weight, center in zip(weights, centers)]
    factor = 0.5 / torch.cat([change.flatten() for change in changes]).norm()
    ball = L2Ball(0.5)
    ball.project(weights, centers)
    for weight, center, change in zip(weights, centers, changes):
        torch.testing.assert_close(weight, center + factor * change)
    assert describe_change(weights, centers, ball)["l2_change"] == pytest.approx(0.5, rel=tolerance)
    assert ball.face_share(weights, centers) == 1


def test_the_three_scopes_of_l2_limit_three_different_norms():
    for scope, expected in {
        "joint": [0.5 * math.sqrt(40 / 47), 0.5 * math.sqrt(7 / 47)],
        "tensor": [0.5, 0.5],
        "tensor_rms": [0.5 * math.sqrt(40), 0.5 * math.sqrt(7)],
    }.items():
        weights, centers = [torch.full((8, 5), 9.0), torch.full((7,), 9.0)], [torch.zeros(8, 5), torch.zeros(7)]
        L2Ball(0.5, scope).project(weights, centers)
        assert [weight.norm().item() for weight in weights] == pytest.approx(expected)


def test_face_share_of_l2_counts_the_weights_of_the_balls_that_are_reached():
    weights, centers = [torch.full((8, 5), 9.0), torch.full((7,), 0.01)], [torch.zeros(8, 5), torch.zeros(7)]
    ball = L2Ball(0.5, "tensor")
    ball.project(weights, centers)
    assert ball.face_share(weights, centers) == 40 / 47
    assert torch.equal(weights[1], torch.full((7,), 0.01))


def test_l2_norm_is_summed_in_float64():
    weights, centers = random_weights(scale=1.0)
    differences = [weight.double() - center.double() for weight, center in zip(weights, centers)]
    exact = math.sqrt(math.fsum(value**2 for difference in differences for value in difference.flatten().tolist()))
    assert describe_change(weights, centers, L2Ball(1.0))["l2_change"] == pytest.approx(exact, rel=1e-14)


def test_projection_works_in_place_on_parameters_without_touching_centers_or_gradients():
    for norm in NORMS:
        weight = torch.nn.Parameter(torch.full((4,), 3.0))
        weight.grad, center = torch.ones(4), torch.ones(4)
        make_ball(norm, 0.1).project([weight], [center])
        assert weight.is_leaf and weight.requires_grad and weight.grad.tolist() == [1.0] * 4
        assert (weight < 1.2).all() and center.tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "weights, centers, message",
    [
        ([], [], "found 0"),
        ([torch.zeros(2)], [], "0 centers"),
        ([torch.zeros(2)], [torch.zeros(2), torch.zeros(2)], "2 centers"),
        ([torch.zeros(2), torch.zeros(2)], [torch.zeros(2), torch.zeros(1)], "tensor 1"),
        ([torch.zeros(2)], [torch.zeros(2, dtype=torch.float64)], "float64"),
        ([torch.zeros(2, dtype=torch.bfloat16)], [torch.zeros(2, dtype=torch.bfloat16)], "not torch.bfloat16"),
        ([torch.zeros(2, dtype=torch.float16)], [torch.zeros(2, dtype=torch.float16)], "not torch.float16"),
        ([torch.zeros(2)] * 2, [torch.zeros(2)] * 2, "listed twice"),
    ],
)
def test_weights_that_do_not_match_their_centers_are_refused_before_any_change(weights, centers, message):
    for weight in weights:
        weight.fill_(5)
    for refuse in (check_weights, LinfBall(1.0).project, L2Ball(1.0, "tensor").project, LinfBall(1.0).face_share):
        with pytest.raises(ValueError, match=message):
            refuse(weights, centers)
    assert all((weight == 5).all() for weight in weights)


def test_describe_change_gives_the_lengths_in_both_norms_whatever_the_ball():
    weights, centers = [torch.tensor([3.0]), torch.tensor([[-4.0]])], [torch.zeros(1), torch.zeros(1, 1)]
    expected = {"max_change": 4.0, "l2_change": 5.0}
    assert describe_change(weights, centers, LinfBall(4.0)) == {"share_on_face": 0.5, **expected}
    assert describe_change(weights, centers, L2Ball(5.0)) == {"share_on_face": 1.0, **expected}
    assert describe_change(weights, centers, L2Ball(6.0)) == {"share_on_face": 0.0, **expected}


def test_balls_are_values():
    assert make_ball("l2_tensor_rms", 1) == L2Ball(1.0, "tensor_rms") and len({LinfBall(1), LinfBall(1.0)}) == 1
    with pytest.raises(AttributeError):
        LinfBall(1.0).radius = "1"
