"""Views of real scenes that a judge trains on, with targets that stay true or fall silent.

Training scenes leave chosen pairs out (a colour with a shape, a shape with a place), so a judge trained on them alone
learns what never occurs and misreads exactly the unseen compositions. Each view breaks one of those links.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Targets = dict[str, Tensor]  # as `eval.scene.encode_label` makes them, stacked by the batch
AXES = ("none", "horizontal", "vertical")  # classes of the axis target
ABSENT = -100  # a target that is not asked: an empty slot, or an attribute that a view destroys; losses ignore it


def augment(x: Tensor, targets: Targets, generator: torch.Generator) -> tuple[Tensor, Targets]:
    """All views in turn, each on a random part of the batch. x: (B, 3, H, W) in [-1, 1]; targets: (B, ...)."""
    x, targets = mirror(x, targets, generator)
    x, targets = transplant(x, targets, generator)
    return degrade(x, generator), targets


def mirror(x: Tensor, targets: Targets, generator: torch.Generator) -> tuple[Tensor, Targets]:
    """Mirror half of the pictures left to right and half top to bottom: every shape stands in every slot.

    Along the axis of its relation a mirrored scene has its slots reversed; no shape changes its name.
    """
    for side, axis in ((-1, "horizontal"), (-2, "vertical")):
        flipped = _chosen(x, 0.5, generator)
        x = torch.where(flipped[:, None, None, None], x.flip(side), x)
        reverse = flipped & (targets["axis"] == AXES.index(axis))
        targets = {name: _reverse_slots(t, targets["count"] + 1, reverse) for name, t in targets.items()}
    return x, targets


def transplant(x: Tensor, targets: Targets, generator: torch.Generator) -> tuple[Tensor, Targets]:
    """Paint half of the pictures in the colours of another one with as many objects along the same axis.

        pixel = ground + a (paint - ground)   ->   ground' + a (paint' - ground')

    Shapes and sizes stay, colours and background come from the other picture, so that every shape meets every colour.
    Holds for drawn scenes: a plain ground up to the corners, and one plain object in each slot's band of the picture.
    """
    chosen, x, targets = _chosen(x, 0.5, generator), x.clone(), {name: t.clone() for name, t in targets.items()}
    kinds = targets["axis"] * 8 + targets["count"]
    for kind in kinds.unique().tolist():
        rows = (kinds == kind).nonzero()[:, 0]
        order = torch.randperm(len(rows), generator=generator, device=generator.device).to(x.device)
        rows, others = rows[chosen[rows]], rows[order][chosen[rows]]
        x[rows] = _painted(x[rows], x[others], axis=AXES[kind // 8], bands=kind % 8 + 1)
        for name in ("background", "colour"):
            targets[name][rows] = targets[name].clone()[others]
    return x, targets


def _painted(x: Tensor, other: Tensor, *, axis: str, bands: int) -> Tensor:
    """Pictures x (b, 3, H, W) in the colours of `other`, band by band along the axis."""
    side = -2 if axis == "vertical" else -1
    ground, new_ground = x[:, :, :1, :1], other[:, :, :1, :1]
    parts = []
    for mine, theirs in zip(x.tensor_split(bands, side), other.tensor_split(bands, side), strict=True):
        stroke, new_stroke = _stroke(mine, ground), _stroke(theirs, new_ground)
        share = ((mine - ground) * stroke).sum(1, keepdim=True) / stroke.square().sum(1, keepdim=True).clamp(min=1e-6)
        parts.append(new_ground + share * new_stroke)
    return torch.cat(parts, side)


def _stroke(x: Tensor, ground: Tensor) -> Tensor:
    """Colour of the object less the ground, (b, 3, 1, 1): at the pixel that is farthest from the ground."""
    away = (x - ground).flatten(2)  # (b, 3, n)
    farthest = away.square().sum(1).argmax(1)[:, None, None].expand(-1, 3, 1)
    return away.gather(2, farthest)[..., None]


def degrade(x: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, coarse blocks and noise at a random strength, as decoded and generated pictures have them.

    x: (B, 3, H, W) in [-1, 1]; a quarter of the pictures stays as it is.
    """
    untouched = _chosen(x, 0.25, generator)[:, None, None, None]
    strength = torch.rand(3, len(x), 1, 1, 1, generator=generator, device=generator.device).to(x.device)
    noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blocks = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear")
    y = torch.lerp(x, blurred, 0.7 * strength[0])
    y = torch.lerp(y, blocks, 0.5 * strength[1])
    y = y + 0.15 * strength[2] ** 2 * noise
    return torch.where(untouched, x, y).clamp(-1, 1)


def _chosen(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    return torch.rand(len(x), generator=generator, device=generator.device).to(x.device) < share  # (B,)


def _reverse_slots(target: Tensor, count: Tensor, reverse: Tensor) -> Tensor:
    """Reverse the first `count` slots of targets (B, slots) where `reverse`; targets (B,) have no slots and stay."""
    if target.ndim == 1:
        return target
    slots = torch.arange(target.shape[1], device=target.device).expand_as(target)
    mirrored = torch.where(slots < count[:, None], count[:, None] - 1 - slots, slots)
    return target.gather(1, torch.where(reverse[:, None], mirrored, slots))
