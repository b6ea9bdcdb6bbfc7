"""The posterior of a clean rotation in closed form, its quadrature and draws, against sums over a dense grid of SO(3)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gm_discrete.generators import quaternions
from gm_discrete.generators import von_mises_fisher as vmf
from gm_discrete.generators.rotation_belief import ATOM, RotationMixture, RotationPosterior
from gm_discrete.generators.rotation_kernels import RotationBelief, RotationLanding
from tests.helpers.distributions import SIGMAS, rng
from tests.helpers.euclid import kolmogorov, noise_of_ks
from tests.helpers.rotations import (
    IDENTITY,
    axis_component,
    density,
    equal_rotations,
    grid,
    mixture,
    rotations,
    weighted_cdf,
)

ROWS, COMPONENTS = 6, 3
CONCENTRATIONS = torch.tensor([0.01, 0.5, 2.0, 5.0, 10.0, 20.0], dtype=torch.float64)


def weights_on_grid(belief: RotationMixture, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior [n, grid] at the points of the grid, of sum 1, and the evidence [n]: Bayes' rule by definition."""
    z = grid()
    prior = (belief.log_weights.softmax(1)[..., None] * densities(belief, z)).sum(1)
    joint = prior * density(x[:, None], k[:, None], z)
    evidence = joint.mean(1)
    return joint / joint.sum(1, keepdim=True), evidence


def densities(belief: RotationMixture, z: Tensor) -> Tensor:
    return density(belief.centers[:, :, None], belief.concentration[..., None], z)


@pytest.fixture(scope="module")
def case() -> tuple[RotationMixture, Tensor, RotationPosterior, Tensor, Tensor]:
    """belief, x, posterior, the posterior on the grid, and the evidence by the grid."""
    belief, x = mixture(ROWS, COMPONENTS), rotations(ROWS, seed=1)
    on_grid, evidence = weights_on_grid(belief, x, CONCENTRATIONS)
    return belief, x, RotationPosterior(belief, x, CONCENTRATIONS), on_grid, evidence


def test_log_prob__is_the_mixture_and_normalised() -> None:
    belief, z = mixture(ROWS, COMPONENTS), grid()
    found = torch.stack([belief.log_prob(point.expand(ROWS, 4)) for point in z[:50]], 1).exp()
    expected = (belief.log_weights.softmax(1)[..., None] * densities(belief, z[:50])).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    rows = RotationMixture(*(value[:, None] for value in (belief.log_weights, belief.concentration, belief.centers)))
    torch.testing.assert_close(rows.log_prob(z).exp().mean(1), torch.ones(ROWS).double(), rtol=1e-3, atol=0)


def test_log_prob__does_not_tell_q_from_minus_q() -> None:
    belief, z = mixture(ROWS, COMPONENTS), rotations(ROWS, seed=2)
    torch.testing.assert_close(belief.log_prob(z), belief.log_prob(-z), rtol=0, atol=1e-12)


def test_rows__come_back() -> None:
    belief = mixture(ROWS, COMPONENTS)
    again = RotationMixture.from_rows(belief.rows)
    torch.testing.assert_close(again.concentration, belief.concentration)
    torch.testing.assert_close(again.centers, belief.centers)
    torch.testing.assert_close(again.log_weights, belief.log_weights)


def test_posterior__evidence_is_the_integral_over_the_grid(
    case: tuple[RotationMixture, Tensor, RotationPosterior, Tensor, Tensor],
) -> None:
    _, _, posterior, _, evidence = case
    torch.testing.assert_close(posterior.log_evidence.exp(), evidence, rtol=1e-3, atol=0)


def test_posterior__is_bayes_rule_pointwise(
    case: tuple[RotationMixture, Tensor, RotationPosterior, Tensor, Tensor],
) -> None:
    """To rounding: only the evidence is a sum over the grid."""
    belief, x, posterior, _, _ = case
    z = rotations(200, ROWS, seed=3)
    joint = belief.log_prob(z) + density(x, CONCENTRATIONS, z).log()
    expected = joint - posterior.log_evidence
    torch.testing.assert_close(posterior.mixture.log_prob(z), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("big", [0.0, 1e-9, 1e3, ATOM])
@pytest.mark.parametrize("k", [0.0, 1e-9, 1e3, 1e12])
def test_posterior__of_extreme_concentrations_is_finite_and_right(big: float, k: float) -> None:
    """A component and noise with the centres m and x: the more concentrated one decides, and none is uniform."""
    m, x = rotations(5, seed=4), rotations(5, seed=5)
    x[0] = m[0]
    belief = RotationMixture(torch.zeros(5, 1).double(), torch.full((5, 1), big).double(), m[:, None])
    found, evidence = belief.posterior(x, torch.full((5,), k).double())
    assert bool(found.log_weights.isfinite().all() & evidence.isfinite().all())
    torch.testing.assert_close(found.centers.norm(dim=-1), torch.ones(5, 2).double())
    best = found.centers[torch.arange(5), found.log_weights.argmax(1)]
    if max(big, k) >= 1e3 and min(big, k) <= 1e-9:
        assert equal_rotations(best, m if big > k else x)
    if min(big, k) == 0:
        torch.testing.assert_close(evidence, torch.zeros(5).double(), rtol=0, atol=1e-8)


def test_means__are_those_over_the_grid(
    case: tuple[RotationMixture, Tensor, RotationPosterior, Tensor, Tensor],
) -> None:
    """Rate of jumps, with a kink at the boundary, and velocity of the flow."""
    _, x, posterior, on_grid, _ = case
    nodes = posterior.nodes(vmf.boundary(CONCENTRATIONS))
    torch.testing.assert_close(nodes.mass.sum(-1), torch.ones(ROWS, 2 * COMPONENTS).double())
    alpha, k = quaternions.half_angle(x[:, None], grid()), CONCENTRATIONS[:, None]

    def rate(a: Tensor, k: Tensor) -> Tensor:
        return (-vmf.slope(a, k)).clamp(min=0)

    found = posterior.mean(rate(nodes.alpha, k[..., None]), nodes)
    torch.testing.assert_close(found, (on_grid * rate(alpha, k)).sum(1), rtol=5e-3, atol=2e-3)
    speed = posterior.mean_vector(-vmf.radial_speed(nodes.alpha, k[..., None]), nodes)
    vectors = -vmf.radial_speed(alpha, k)[..., None] * quaternions.towards(x[:, None], grid())
    torch.testing.assert_close(speed, (on_grid[..., None] * vectors).sum(1), rtol=5e-3, atol=1e-3)
    torch.testing.assert_close((speed * x).sum(-1), torch.zeros(ROWS).double(), rtol=0, atol=1e-12)


def test_probability__of_a_step_is_that_over_the_grid(
    case: tuple[RotationMixture, Tensor, RotationPosterior, Tensor, Tensor],
) -> None:
    """1 − p_s(x|z)/p_t̂(x|z), where t̂ is found by trying all concentrations of the interval."""
    belief, x, _, on_grid, _ = case
    end = 2 * CONCENTRATIONS + 0.5
    kernel = RotationBelief(belief, x[:, None], CONCENTRATIONS)
    nodes = kernel.posterior.nodes(vmf.boundary(end))

    def chance(a: Tensor, wide: int) -> Tensor:
        start, finish = CONCENTRATIONS.view(-1, *[1] * wide), end.view(-1, *[1] * wide)
        likeliest = torch.minimum(torch.maximum(vmf.peak(a), start), finish)
        return -torch.expm1(vmf.log_density(a, finish) - vmf.log_density(a, likeliest))

    alpha = quaternions.half_angle(x[:, None], grid())
    tried = torch.lerp(CONCENTRATIONS[:, None], end[:, None], torch.linspace(0, 1, 40, dtype=torch.float64)[None])
    highest = torch.stack([vmf.log_density(alpha, k[:, None]) for k in tried.unbind(1)]).amax(0)
    by_hand = -torch.expm1(vmf.log_density(alpha, end[:, None]) - highest)
    torch.testing.assert_close(chance(alpha, 1), by_hand, rtol=0, atol=2e-3)
    found = kernel.posterior.mean(chance(nodes.alpha, 2), nodes)
    torch.testing.assert_close(found, (on_grid * by_hand).sum(1), rtol=5e-3, atol=2e-3)


DRAWS = 3000


def test_draw__has_the_posterior_distribution(
    case: tuple[RotationMixture, Tensor, RotationPosterior, Tensor, Tensor],
) -> None:
    """Half angles to x and to another rotation, and a coordinate of the axis."""
    belief, x, _, on_grid, _ = case
    where = torch.arange(ROWS)
    many = RotationBelief(belief[where.repeat(DRAWS)], x.repeat(DRAWS, 1)[:, None], CONCENTRATIONS.repeat(DRAWS))
    z = many.sample(rng(6), torch.arange(ROWS * DRAWS)).view(DRAWS, ROWS, 4)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(DRAWS, ROWS).double())
    for row in range(0, ROWS, 2):
        for other in (x[row], rotations(1, seed=7)[0]):
            values, points = quaternions.half_angle(z[:, row], other), quaternions.half_angle(grid(), other)
            d, _ = kolmogorov(values, weighted_cdf(points, on_grid[row]))
            assert d < noise_of_ks(DRAWS) + 0.005  # the quadrature of the draw, and the grid
            values, points = axis_component(z[:, row], other), axis_component(grid(), other)
            assert kolmogorov(values, weighted_cdf(points, on_grid[row]))[0] < noise_of_ks(DRAWS) + 0.005


def test_landing__is_around_a_clean_rotation_at_the_angles_of_a_jump() -> None:
    """∫ f over landings, by the definition ∝ E[∂ log f/∂k]₊: the rows of the lattice agree with fresh draws."""
    belief, x, k = mixture(2, COMPONENTS), rotations(2, seed=8), CONCENTRATIONS[2:4]
    kernel = RotationBelief(belief, x[:, None], k)

    def chance(a: Tensor, where: Tensor) -> Tensor:
        return (-vmf.slope(a, k[where, None, None])).clamp(min=0)

    landing = RotationLanding(kernel, chance, vmf.boundary(k), k)
    points, mass = landing.nodes(torch.arange(2))
    many = RotationBelief(belief[torch.zeros(DRAWS).long()], x[:1].repeat(DRAWS, 1)[:, None], k[:1].repeat(DRAWS))
    again = RotationLanding(
        many,
        lambda a, where: (-vmf.slope(a, k[0])).clamp(min=0),
        vmf.boundary(k[:1]).repeat(DRAWS),
        k[:1].repeat(DRAWS),
    )
    drawn = again.sample(rng(9), torch.arange(DRAWS))
    for other in (x[0], rotations(1, seed=7)[0]):
        values = quaternions.half_angle(drawn, other).cos().square()
        expected = (mass[0] * quaternions.half_angle(points[0], other).cos().square()).sum()
        assert abs(float(values.mean() - expected)) < SIGMAS * float(values.std()) / math.sqrt(DRAWS) + 0.005


def test_belief__log_likelihood_ratio_is_the_log_posterior_without_the_noise() -> None:
    belief, x, z = mixture(4, COMPONENTS), rotations(4, seed=10)[:, None], rotations(4, seed=11)[:, None]
    kernel = RotationBelief(belief, x, CONCENTRATIONS[:4])
    noise = density(x, CONCENTRATIONS[:4, None], z).log()
    torch.testing.assert_close(
        kernel.log_likelihood_ratio(z),
        kernel.posterior.mixture.log_prob(z[:, 0])[:, None] - noise,
        atol=1e-9,
        rtol=1e-9,
    )


def test_atoms__posterior_is_the_atom() -> None:
    z = rotations(3, seed=12)
    found, _ = RotationMixture.atoms(z).posterior(rotations(3, seed=13), CONCENTRATIONS[:3])
    best = found.centers[torch.arange(3), found.log_weights.argmax(1)]
    assert equal_rotations(best, z)
    assert float(RotationMixture.atoms(IDENTITY[None]).log_prob(ATOM**-0.5 * IDENTITY[None] + IDENTITY)) > 30
