"""How the three exponents answer when a known spectrum moves a little.

For each statistic y of the spectrum there is a function f with dy = sum_i f(lambda_i + d lambda_i) -
f(lambda_i) to first order (the influence function; Hampel 1974). The leading values are followed one by one
and enter f as they are. Of the others, the bulk, only sums are known: sum lambda from the energy |A|_F^2,
sum lambda^2 from random probes. So f is replaced there by the quadratic that is nearest to it in the mean
over the bulk as it was at the last exact look:

    f(lambda) ~ c_0 + c_1 lambda + c_2 lambda^2
    dy ~ c_1 d(sum lambda) + c_2 d(sum lambda^2) + what the leading values give

With x = ln lambda, N values, k of them in the upper half, med the median of x and rho the density of x
there, as a share of N per unit:

    Hill         y = (mean of the upper half) - med,   alpha_hill = 1 + 1 / y
                 f = (x - med)_+ / k - 1[x > med] / (N rho)
    CSN          alpha = 1 + count / excess for the xmin of the last exact look
                 f = 1[lambda >= xmin] for the count, (x - ln xmin)_+ for the excess
    rank-size    y = -sum_k a_k ln sigma_k, a_k the weights of the least-squares slope on ln k
                 f' (x_k) = -a_k / 2, summed up from the smallest value

The median jitters between neighbours that repel it. The part of Hill's y that was jitter at the last exact
look (against a parabola through the x around the median) is forgotten as the drift grows past the level
spacing.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

STATISTICS = ("hill", "count", "excess", "slope")
# In this order wherever there are three of something.
EXPONENTS = ("alpha_hill", "alpha", "alpha_ranksize")
# The quadratic has to hold a little beyond the bulk, too: values leave it upwards, drawn by training. 1.3 to
# 2 are alike; without the room a polynomial swings there, the more the higher its degree (docs/tracking.md).
_ROOM = 1.5
_ROOM_WEIGHT = 0.3
# Of the values, on each side of the median: for the density there, and for the parabola that has no jitter.
_DENSITY_SHARE = 0.05
_PARABOLA_SHARE = 0.03
# Half of a jitter is forgotten when the drift, times sqrt(n) for the width of a level against the spacing of
# levels, is this large: of the median, and of the least values, which move the slope. 0.9 to 2 are alike for
# the median.
_SPACINGS = torch.tensor([[1.4], [0.3]], dtype=torch.float64, device="cpu")
# Errors to be expected, from every matrix of a 4-layer GPT over 600 steps (docs/tracking.md): jitter, in
# units of one value (of the median, of the count above xmin, of the slope), and a relative error a unit of
# drift.
_JITTER = torch.tensor([[0.5], [0.55], [0.8]], dtype=torch.float64, device="cpu")
_REST = torch.tensor([[0.04], [0.15], [0.05]], dtype=torch.float64, device="cpu")
# And what is there without any drift, relative: the leading vectors go on turning. Up to 3.5e-4 was seen on
# weights that stand still, 256 to 1024 columns.
_STILL = 3e-4


@dataclass(frozen=True, eq=False)
class Influence:
    """The answers of STATISTICS around an exact look; B matrices, the statistics along the last dimension.

    Attributes:
        leading: (B, lead) squares of the values that are followed one by one, descending.
        sums: (B, 2) sum of lambda and of lambda^2 over the bulk.
        slopes: (B, 2, 4): c_1 and c_2 of each statistic.
        start: (B, 4): the statistics at the look; Hill's without its jitter.
        jitter: (B,): Hill's.
        spacing: (B,) distance of neighbouring x around the median.
        ln_xmin: (B,)
        weights: (lead,): a_k of the leading values.
        n: how many values there are.
    """

    leading: Tensor
    sums: Tensor
    slopes: Tensor
    start: Tensor
    jitter: Tensor
    spacing: Tensor
    ln_xmin: Tensor
    weights: Tensor
    n: int

    def exponents(self, leading: Tensor, sums: Tensor, drift: Tensor) -> Tensor:
        """EXPONENTS of spectra near the look's: (3, B) float64.

        leading, sums: as the attributes, now. drift: (B,) relative change of the bulk of A^T A.
        """
        moved = torch.baddbmm(self._base[:, None], (sums - self.sums)[:, None], self.slopes)[:, 0]
        hill, count, excess, slope = (moved + self._of_leading(leading)).unbind(-1)
        hill = hill + self.jitter * self._kept(drift)[0]
        return torch.stack([1 + 1 / hill, 1 + count / excess, slope])

    def errors(self, drift: Tensor) -> tuple[Tensor, Tensor]:
        """Standard errors to be expected of them, before anything is known of this run; (3, B) float64.

        The whole, and of it what has grown with the drift: the rest, jitter, is there right after the look.
        """
        size, jitter = self._at_look
        median, least = (1 - self._kept(drift).square()).sqrt().unbind()
        jitter = jitter * torch.stack([median, (drift > 0).to(median.dtype), least])
        grown = size * drift
        still = size * (_STILL / _REST).to(size.device)
        return (jitter.square() + grown.square() + still.square()).sqrt(), grown

    def _kept(self, drift: Tensor) -> Tensor:
        """(2, B): the share of the jitter of the median, and of the least values, that is still there."""
        return 1 / (1 + drift.square() * (self.n / _SPACINGS**2).to(drift.device))

    def _of_leading(self, leading: Tensor) -> Tensor:
        """(B, 4): what the leading values give to STATISTICS."""
        x = leading.log()
        linear = x @ self._linear
        above = x - self.ln_xmin[:, None]
        counted = torch.stack([(above >= 0).to(x.dtype), above.clamp_min(0)]).sum(-1)
        return torch.cat([linear[:, :1], counted.mT, linear[:, 1:]], -1)

    @functools.cached_property
    def _linear(self) -> Tensor:
        upper = self.n - self.n // 2
        return torch.stack([torch.full_like(self.weights, 1 / upper), -self.weights / 2], -1)

    @functools.cached_property
    def _base(self) -> Tensor:
        return self.start - self._of_leading(self.leading)

    @functools.cached_property
    def _at_look(self) -> tuple[Tensor, Tensor]:
        """(3, B) each: _REST times the exponents' size, and their jitter."""
        hill, count, excess, slope = self.start.unbind(-1)
        size = torch.stack([1 + 1 / hill, 1 + count / excess, slope]).abs()
        one = torch.stack([self.spacing / hill.square(), 1 / excess, torch.full_like(slope, 1 / self.n)])
        return size * _REST.to(size.device), one * _JITTER.to(size.device)


def influence(S: Tensor, xmin: Tensor, lead: int) -> Influence:
    """From singular values S (B, n), descending, of which `lead` are followed one by one; xmin (B,) of CSN.

    Values of zero, and an xmin that is NaN, give NaN to what they enter.
    """
    lam = S.to(torch.float64).square()
    x = lam.log()
    n = x.shape[-1]
    lower = n // 2  # ascending index of the median; from the top it is upper - 1
    upper = n - lower

    window = max(4, round(_PARABOLA_SHARE * n))
    around = torch.arange(-window, window + 1, device=x.device)
    scaled = around.to(torch.float64) / window
    smooth = torch.linalg.pinv(torch.stack([scaled**0, scaled, scaled**2], -1))[0]
    median = x[:, upper - 1 - around] @ smooth
    reach = max(4, round(_DENSITY_SHARE * n))
    per_value = (x[:, upper - 1 - reach] - x[:, upper - 1 + reach]) / (2 * reach)  # 1 / (N rho)

    rank = torch.arange(1, n + 1, dtype=torch.float64, device=x.device).log()
    weights = (rank - rank.mean()) / (rank - rank.mean()).square().sum()
    ln_xmin = xmin.to(torch.float64).log()

    beyond_median, beyond_xmin = x - median[:, None], x - ln_xmin[:, None]
    steps = (x[:, :-1] - x[:, 1:]) * (weights[:-1] + weights[1:]) / 4
    f = torch.stack(
        [
            beyond_median.clamp_min(0) / upper - (beyond_median >= 0) * per_value[:, None],
            (beyond_xmin >= 0).to(torch.float64),
            beyond_xmin.clamp_min(0),
            torch.nn.functional.pad(-steps.flip(-1).cumsum(-1).flip(-1), (0, 1)),
        ],
        -1,
    )
    start = torch.stack(
        [
            x[:, :upper].mean(-1) - median,
            f[..., 1].sum(-1),
            f[..., 2].sum(-1),
            -(x @ weights) / 2,
        ],
        -1,
    )
    bulk = lam[:, lead:]
    return Influence(
        leading=lam[:, :lead],
        sums=torch.stack([bulk.sum(-1), bulk.square().sum(-1)], -1),
        slopes=_quadratics(lam, f, lead),
        start=start,
        jitter=median - x[:, upper - 1],
        spacing=per_value,
        ln_xmin=ln_xmin,
        weights=weights[:lead],
        n=n,
    )


def _quadratics(lam: Tensor, f: Tensor, lead: int) -> Tensor:
    """c_1 and c_2 (B, 2, 4) of the quadratics nearest to f (B, n, 4) over the bulk and the room above it."""
    n = lam.shape[-1]
    edge = lam[:, lead : lead + 1]
    # In the room f is interpolated between the leading values, linearly in ln lambda.
    room = edge * torch.linspace(1, _ROOM, max(8, n // 12), dtype=lam.dtype, device=lam.device)
    x, at = lam.log().flip(-1).contiguous(), room.log()
    after = torch.searchsorted(x, at).clamp(1, n - 1)
    left, right = x.gather(-1, after - 1), x.gather(-1, after)
    share = ((at - left) / (right - left).clamp_min(math.ulp(1.0))).clamp(0, 1)[..., None]
    ascending = f.flip(-2)
    pick = after[..., None].expand(-1, -1, f.shape[-1])
    in_room = ascending.gather(-2, pick - 1) * (1 - share) + ascending.gather(-2, pick) * share

    points = torch.cat([lam[:, lead:], room], -1) / (edge * _ROOM)
    targets = torch.cat([f[:, lead:], in_room], -2)
    weight = torch.ones(points.shape[-1], dtype=lam.dtype, device=lam.device)
    weight[n - lead :] = _ROOM_WEIGHT**2
    powers = torch.stack([points**0, points, points**2], -1)
    weighted = (powers * weight[:, None]).mT
    normal, right_side = weighted @ powers, weighted @ targets
    usable = normal.isfinite().all(-1).all(-1)[:, None, None]
    normal = torch.where(usable, normal, torch.eye(3, dtype=lam.dtype, device=lam.device))
    c = torch.linalg.solve_ex(normal, right_side)[0]
    scale = (edge * _ROOM)[..., None]
    return torch.cat([c[:, 1:2] / scale, c[:, 2:3] / scale**2], -2)
