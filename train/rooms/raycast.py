"""Exact ray casting against boxes, ellipsoids and upright truncated cones, in torch on the CPU.

A solid is an affine image of a unit one, so each test is made in the solid's own unit frame. Ray directions
have a forward component of 1, which makes the ray parameter the z-depth, in every frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BOX, ELLIPSOID, CONE = range(3)
NEAR = 0.05
Triple = Sequence[Tensor]  # x, y, z


@dataclass(frozen=True)
class Solids:
    """N solids: `kind` (N,), `centre` (N, 3) metres, `frame` (N, 3, 3) world to unit offsets, `taper` (N,).

    A cone's radius in its unit frame is 1 + taper * z for |z| <= 1, so that 0 is a cylinder; |taper| < 1.
    """

    kind: Tensor
    centre: Tensor
    frame: Tensor
    taper: Tensor


@dataclass(frozen=True)
class View:
    """A pinhole view: `origin` (3,) and the rows right, down, forward of `axes` (3, 3) in world coordinates.

    `xs` (W,) and `ys` (H,) are the image-plane coordinates of the samples at depth 1, ascending.
    """

    origin: Tensor
    axes: Tensor
    xs: Tensor
    ys: Tensor


def hit_box(o: Triple, d: Triple) -> Tensor:
    """Ray parameter at which o + t d enters the cube |x|, |y|, |z| <= 1; inf: it misses or starts inside."""
    near, far = _slab(o[0], d[0])
    for start, step in zip(o[1:], d[1:], strict=True):
        low, high = _slab(start, step)
        near, far = torch.maximum(near, low), torch.minimum(far, high)
    return near.masked_fill_((near > far) | (near <= 0), torch.inf)


def _slab(start: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    inverse = (step + 1e-20).reciprocal()  # a parallel ray: huge, not infinite
    middle, reach = -start * inverse, inverse.abs_()
    return middle - reach, middle.add_(reach)


def hit_ellipsoid(o: Triple, d: Triple) -> Tensor:
    """Ray parameter at which o + t d enters the unit ball; inf where it misses or starts inside."""
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = o[0] * d[0] + o[1] * d[1] + o[2] * d[2]
    c = o[0] * o[0] + o[1] * o[1] + o[2] * o[2] - 1
    t = (-b - (b * b - a * c).sqrt_()) / a  # a miss is the square root of a negative number: nan
    return t.masked_fill_(~(t > 0), torch.inf)


def hit_cone(o: Triple, d: Triple, taper: Tensor) -> Tensor:
    """Ray parameter at which o + t d enters x^2 + y^2 <= (1 + taper z)^2, |z| <= 1; inf: as for a box."""
    radius, growth = 1 + taper * o[2], taper * d[2]
    a = d[0] * d[0] + d[1] * d[1] - growth * growth
    b = o[0] * d[0] + o[1] * d[1] - radius * growth
    c = o[0] * o[0] + o[1] * o[1] - radius * radius
    root = (b * b - a * c).sqrt_()
    best = torch.full_like(root, torch.inf)
    for t in ((-b - root) / a, (-b + root) / a):
        best = torch.minimum(best, t.masked_fill_(~((t > 0) & ((o[2] + t * d[2]).abs_() <= 1)), torch.inf))
    side = torch.where(o[2] > 0, 1.0, -1.0)
    t = (side - o[2]) / d[2]  # the cap that faces the origin
    x, y, r = o[0] + t * d[0], o[1] + t * d[1], 1 + taper * side
    t = t.masked_fill_(~((t > 0) & (x * x + y * y <= r * r)), torch.inf)
    best = torch.minimum(best, t)
    inside = (c < 0) & (o[2].abs() < 1)
    return best.masked_fill_(inside, torch.inf)


def _hit(kind: int, o: Triple, d: Triple, taper: Tensor) -> Tensor:
    if kind == BOX:
        return hit_box(o, d)
    return hit_ellipsoid(o, d) if kind == ELLIPSOID else hit_cone(o, d, taper)


def extents(solids: Solids, view: View) -> tuple[Tensor, Tensor]:
    """Image-plane left, top, right, bottom (N, 4) of the solids' boxes; (N,) whether any part is in front."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)  # (8, 3)
    inverse = torch.linalg.inv(solids.frame)
    corners = solids.centre[:, None] + torch.einsum("nij,kj->nki", inverse, signs) - view.origin
    corners = corners @ view.axes.T  # (N, 8, 3): right, down, forward
    first, second = torch.tensor([(i, j) for i in range(8) for j in range(i) if (i ^ j) in (1, 2, 4)]).T
    p, q = corners[:, first], corners[:, second]
    share = ((NEAR - p[..., 2]) / (q[..., 2] - p[..., 2])).nan_to_num(-1.0)
    cuts = p + share[..., None] * (q - p)  # where an edge crosses the near plane
    points = torch.cat([corners, cuts], 1)
    valid = torch.cat([corners[..., 2] > NEAR, (share > 0) & (share < 1)], 1)
    plane = points[..., :2] / points[..., 2:].clamp(min=0.5 * NEAR)
    low = plane.masked_fill(~valid[..., None], torch.inf).amin(1)
    high = plane.masked_fill(~valid[..., None], -torch.inf).amax(1)
    return torch.cat([low, high], 1), valid.any(1)


def cast(solids: Solids, view: View) -> tuple[Tensor, Tensor]:
    """Z-depth (H, W) in metres of the nearest solid at each sample (inf: none) and its index (H, W) int32.

    Each solid is tested only inside the rectangle that its bounding box covers.
    """
    bounds, ahead = extents(solids, view)
    left = torch.searchsorted(view.xs, bounds[:, 0].contiguous() - 1e-4).tolist()
    top = torch.searchsorted(view.ys, bounds[:, 1].contiguous() - 1e-4).tolist()
    right = torch.searchsorted(view.xs, bounds[:, 2].contiguous() + 1e-4).tolist()
    bottom = torch.searchsorted(view.ys, bounds[:, 3].contiguous() + 1e-4).tolist()
    starts = (solids.frame @ (view.origin - solids.centre)[..., None])[..., None]  # (N, 3, 1, 1)
    turn = solids.frame @ view.axes.T  # (N, 3, 3): a unit-frame direction is x, y, 1 times these columns
    columns = turn[:, :, :1] * view.xs + turn[:, :, 2:]  # (N, 3, W)
    rows = (turn[:, :, 1:2] * view.ys)[..., None]  # (N, 3, H, 1)
    depth = torch.full((len(view.ys), len(view.xs)), torch.inf)
    index = torch.zeros(depth.shape, dtype=torch.int32)
    kinds, shown = solids.kind.tolist(), ahead.tolist()
    for i, (x0, y0, x1, y1) in enumerate(zip(left, top, right, bottom, strict=True)):
        if not shown[i] or x0 >= x1 or y0 >= y1:
            continue
        d = (columns[i, :, None, x0:x1] + rows[i, :, y0:y1]).unbind()
        t = _hit(kinds[i], starts[i].unbind(), d, solids.taper[i])
        here, owner = depth[y0:y1, x0:x1], index[y0:y1, x0:x1]
        owner.masked_fill_(t < here, i)
        torch.minimum(here, t, out=here)
    return depth, index


def probe(solids: Solids, view: View) -> Tensor:
    """Z-depth (H, W) as `cast` gives it, all rays against all solids at once: quicker for few rays."""
    starts = solids.frame @ (view.origin - solids.centre)[..., None]  # (N, 3, 1)
    grid = torch.stack(torch.meshgrid(view.xs, view.ys, indexing="xy"), -1).reshape(-1, 2)
    rays = torch.cat([grid, torch.ones(len(grid), 1)], 1) @ view.axes  # (R, 3) in the world
    best = torch.full((len(grid),), torch.inf)
    for kind in (BOX, ELLIPSOID, CONE):
        chosen = solids.kind == kind
        if chosen.any():
            d = (solids.frame[chosen] @ rays.T).unbind(1)
            t = _hit(kind, starts[chosen].unbind(1), d, solids.taper[chosen, None])
            best = torch.minimum(best, t.amin(0))
    return best.reshape(len(view.ys), len(view.xs))
