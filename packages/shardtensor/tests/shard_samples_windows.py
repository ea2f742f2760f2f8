"""Samples of operations on windows: convolution, padding, pooling, resampling."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from shard_samples import Sample
from torch import Tensor

from shardtensor import chunk_sizes


def convolutions() -> list[Sample]:
    """Stride phases, even kernels, dilation, padding; windows wider than a shard."""
    samples = []
    for kernel, stride, padding, dilation in (
        ((3, 3), 1, 1, 1),
        ((3, 3), 2, 1, 1),
        ((3, 3), (2, 1), (0, 1), 1),
        ((2, 3), 1, (1, 0), 1),
        ((4, 5), 3, (2, 0), 1),
        ((3, 3), 1, (4, 4), 4),
        ((7, 6), 1, (3, 2), 1),
        ((5, 3), 1, "same", (1, 2)),
        ((3, 2), 1, "valid", (1, 3)),
    ):
        samples.append(
            Sample(
                op="conv2d",
                run=lambda x, w, b, s=stride, p=padding, d=dilation: F.conv2d(x, w, b, s, p, d),
                inputs=((2, 2, 13, 12),),
                dims=((2,), (3,)),
                grid=(((2, 3),), ((0, 2),)),
                weights=((3, 2, *kernel), (3,)),
                forward=1,
                backward=2,
            )
        )
    samples += [
        Sample(
            op="conv2d",
            run=lambda x, w, s=stride: F.conv2d(x, w, stride=s),
            inputs=((4, 2, 12, 12),),
            dims=((0,), (2,), (3,)),
            grid=(((2, 3),), ((0, 2),)),
            weights=((3, 2, 1, 1),),
            backward=1,
        )
        for stride in (1, 3)
    ]
    samples += [
        Sample(
            op="conv1d",
            run=lambda x, w, b: F.conv1d(x, w, b, padding=1, groups=3),
            inputs=((2, 3, 11),),
            dims=((2,),),
            grid=(((0, 2),),),
            weights=((6, 1, 3), (6,)),
            forward=1,
            backward=2,
        ),
        Sample(
            op="conv2d",
            run=lambda x, w: F.conv2d(x, w, padding=1),
            inputs=((3, 9, 8),),
            dims=((1,), (2,)),
            grid=(((2, 1),),),
            weights=((2, 3, 3, 3),),
            forward=1,
            backward=2,
        ),
        Sample(
            op="conv3d",
            run=lambda x, w, b: F.conv3d(x, w, b, padding=(1, 1, 0), stride=(1, 2, 1)),
            inputs=((1, 2, 7, 8, 9),),
            dims=((2,), (3,), (4,)),
            grid=(((2, 3),), ((4, 3),)),
            weights=((2, 2, 3, 3, 3), (2,)),
            forward=1,
            backward=2,
        ),
    ]
    return samples


def transposed() -> list[Sample]:
    """Kernels smaller and larger than the stride, with padding and output padding."""
    samples = []
    for kernel, stride, padding, extra, dilation, moved in (
        ((3, 3), 1, 1, 0, 1, (1, 1)),
        ((4, 4), 2, 1, 0, 1, (1, 1)),
        ((3, 5), 2, (1, 2), 1, 1, (1, 1)),
        ((2, 3), 2, 0, (1, 0), 1, (0, 1)),
        ((3, 2), (1, 3), (0, 1), (0, 2), (3, 1), (1, 0)),
        ((2, 3), (4, 5), (0, 1), 3, 1, (0, 0)),
        ((7, 6), 2, (3, 0), 1, 1, (1, 1)),
        ((3, 3), 3, 3, (2, 1), 4, (1, 1)),
    ):
        samples += [
            Sample(
                op="conv_transpose2d",
                run=lambda x, w, b, s=stride, p=padding, e=extra, d=dilation: F.conv_transpose2d(
                    x, w, b, s, p, e, 1, d
                ),
                inputs=((2, 2, 9, 8),),
                dims=((2 + i,),),
                grid=(((2, 3),), ((0, 3),)) if i == 0 else (),
                weights=((2, 3, *kernel), (3,)),
                forward=moved[i],
                backward=1 + moved[i],
            )
            for i in (0, 1)
        ]
    samples += [
        Sample(
            op="conv_transpose2d",
            run=lambda x, w: F.conv_transpose2d(x, w, stride=2),
            inputs=((4, 2, 7, 8),),
            dims=((0,), (2,), (3,)),
            grid=(((2, 3),), ((0, 2),)),
            weights=((2, 3, 2, 2),),
            backward=1,
        ),
        Sample(
            op="conv_transpose1d",
            run=lambda x, w, b: F.conv_transpose1d(x, w, b, 2, 1, 1, groups=2),
            inputs=((2, 4, 9),),
            dims=((2,),),
            grid=(((2, 0),),),
            weights=((4, 1, 3), (2,)),
            forward=1,
            backward=2,
        ),
        Sample(
            op="conv_transpose3d",
            run=lambda x, w: F.conv_transpose3d(x, w, stride=(1, 2, 2), padding=1),
            inputs=((2, 5, 6, 7),),
            dims=((1,), (2,), (3,)),
            grid=(((3, 1),),),
            weights=((2, 2, 3, 4, 4),),
            forward=1,
            backward=2,
        ),
    ]
    return samples


def _reflected(extent: int, before: int, after: int) -> Callable[[int], int]:
    """Returns whether rows move: where the first or the last rank lacks rows that mirror the padding."""

    def moved(ranks: int) -> int:
        sizes = chunk_sizes(extent, ranks)
        return int(before >= sizes[0] or after >= sizes[-1])

    return moved


def paddings() -> list[Sample]:
    samples = []
    for mode in ("constant", "reflect", "replicate", "circular"):
        for width in ((1, 2, 3, 2), (0, 0, 4, 0), (5, 5, 5, 5)):
            for dim in (2, 3):
                before, after = width[2 * (3 - dim) : 2 * (3 - dim) + 2]
                moved: int | Callable[[int], int] = int(mode == "circular" and bool(before or after))
                if mode == "reflect":
                    moved = _reflected((13, 12)[dim - 2], before, after)
                samples.append(
                    Sample(
                        op="pad",
                        run=lambda x, m=mode, w=width: F.pad(x, w, mode=m),
                        inputs=((2, 3, 13, 12),),
                        dims=((dim,),),
                        grid=(((2, 3),),) if dim == 2 else (),
                        forward=moved,
                        backward=moved,
                        uneven=int(mode in ("reflect", "circular")),
                    )
                )
    samples += [
        Sample(
            op="pad",
            run=lambda x: F.pad(x, (1, 0, 2, 1), value=3.5),
            inputs=((2, 7, 6),),
            dims=((0,), (1,), (2,)),
            grid=(((1, 2),),),
        ),
        Sample(
            op="pad",
            run=lambda x: F.pad(x, (-1, 2, 1, -3)),
            inputs=((2, 7, 6),),
            dims=((1,), (2,)),
            grid=(((1, 2),),),
        ),
    ]
    return samples


def _modules() -> list[Sample]:
    """Modules as users have them, all with one exchange."""
    samples = []
    for mode in ("zeros", "reflect", "replicate", "circular"):
        layer = torch.nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode=mode, dtype=torch.float64)

        def run(x: Any, w: Any, b: Any, layer: torch.nn.Module = layer) -> Any:
            return torch.func.functional_call(layer, {"weight": w, "bias": b}, (x,))

        samples.append(
            Sample(
                op="conv2d",
                run=run,
                inputs=((2, 2, 12, 12),),
                dims=((2,), (3,)),
                grid=(((2, 3),),),
                weights=((3, 2, 3, 3), (3,)),
                forward=1,
                backward=2,
            )
        )
    return samples


def _tied(x: Tensor) -> Tensor:
    """Many equal values, as after a ReLU, and windows of -inf."""
    x = x.round()
    return torch.where(x < -1, -torch.inf, x)


def poolings() -> list[Sample]:
    """Windows that touch, overlap, leave gaps, and stand out at the edges."""
    samples = []
    for kernel, stride, padding, ceil, dilation, moved in (
        (2, None, 0, False, 1, 0),
        (3, 2, 1, False, 1, 1),
        (3, 2, 1, True, 1, 1),
        ((3, 2), (1, 4), (1, 0), True, (2, 1), 1),
        (3, 1, 1, False, 3, 1),
        ((5, 4), 5, (2, 1), True, 1, 1),
    ):
        for i in (0, 1):
            maximum = ((kernel, stride, padding, dilation, ceil), "max_pool2d_with_indices")
            straddles = moved if i == 0 or kernel != (3, 2) else 0
            for make in (lambda x: x, _tied):
                samples.append(
                    Sample(
                        op=maximum[1],
                        run=lambda x, o=maximum[0]: F.max_pool2d(x, *o, return_indices=True),
                        inputs=((2, 2, 24, 24),),
                        dims=((2 + i,),),
                        grid=(((2, 3),), ((3, 1),)) if i == 0 else (),
                        forward=straddles,
                        backward=straddles,
                        uneven=1,
                        make=make,
                    )
                )
            if dilation != 1:
                continue
            for counted, divisor in ((True, None), (False, None), (False, 3)):
                samples.append(
                    Sample(
                        op="avg_pool2d",
                        run=lambda x, o=(kernel, stride, padding, ceil, counted, divisor): F.avg_pool2d(
                            x, *o
                        ),
                        inputs=((2, 2, 24, 24),),
                        dims=((2 + i,),),
                        grid=(((2, 3),), ((3, 1),)) if i == 0 else (),
                        forward=straddles,
                        backward=straddles,
                        uneven=1,
                    )
                )
    samples += [
        Sample(
            op=op,
            run=run,
            inputs=(shape,),
            dims=dims,
            grid=grid,
            forward=moved,
            backward=moved,
            uneven=1,
            bf16="3d" not in op,
        )
        for op, run, shape, dims, grid, moved in (
            ("max_pool1d", lambda x: F.max_pool1d(x, 3, 1, 1), (2, 2, 11), ((2,),), (((0, 2),),), 1),
            ("max_pool1d", lambda x: torch.max_pool1d(x, 3, 2), (2, 12), ((1,),), (((0, 1),),), 1),
            (
                "max_pool1d_with_indices",
                lambda x: F.max_pool1d(x, 3, 1, 1, return_indices=True),
                (2, 2, 11),
                ((2,),),
                (((1, 2),),),
                1,
            ),
            ("max_pool2d", lambda x: F.max_pool2d(x, 2), (2, 24, 24), ((0,), (1,), (2,)), (((1, 2),),), 0),
            ("max_pool3d", lambda x: F.max_pool3d(x, 3, 2, 1), (1, 2, 9, 8, 9), ((2,),), (((3, 4),),), 1),
            (
                "max_pool3d_with_indices",
                lambda x: F.max_pool3d(x, 3, 1, 1, return_indices=True),
                (1, 2, 8, 5, 7),
                ((2,), (3,), (4,)),
                (((3, 4),),),
                1,
            ),
            ("avg_pool1d", lambda x: F.avg_pool1d(x, 3, 1, 1), (2, 2, 11), ((2,),), (((0, 2),),), 1),
            (
                "avg_pool1d",
                lambda x: F.avg_pool1d(x, 4, 2, 2, True, False),
                (2, 2, 11),
                ((2,),),
                (((1, 2),),),
                1,
            ),
            (
                "avg_pool3d",
                lambda x: F.avg_pool3d(x, 3, 1, 1, count_include_pad=False),
                (1, 2, 6, 5, 7),
                ((2,), (3,), (4,)),
                (((2, 4),),),
                1,
            ),
            ("lp_pool1d", lambda x: F.lp_pool1d(x, 2, 3, 1, True), (2, 2, 11), ((2,),), (((0, 2),),), 1),
            (
                "lp_pool2d",
                lambda x: F.lp_pool2d(x, 4, 3, 2, True),
                (2, 2, 12, 11),
                ((2,),),
                (((2, 3),),),
                1,
            ),
            ("lp_pool3d", lambda x: F.lp_pool3d(x, 2, 2), (1, 2, 8, 24, 5), ((1,), (3,)), (((1, 3),),), 0),
        )
    ]
    return samples


def adaptive() -> list[Sample]:
    """Any output size: divisors, others, more than there are rows, and whole dimensions."""
    samples = []
    for size, rows, moved in (((5, None), 24, 1), ((12, 6), 24, 0), ((7, 30), 24, 1), ((3, 2), 22, 1)):
        for make in (lambda x: x, _tied):
            samples.append(
                Sample(
                    op="adaptive_max_pool2d_with_indices",
                    run=lambda x, n=size: F.adaptive_max_pool2d(x, n, return_indices=True),
                    inputs=((2, 2, rows, 11),),
                    dims=((2,),),
                    grid=(((2, 3),), ((3, 1),)),
                    forward=moved,
                    backward=moved,
                    uneven=1,
                    make=make,
                )
            )
        samples.append(
            Sample(
                op="adaptive_avg_pool2d",
                run=lambda x, n=size: F.adaptive_avg_pool2d(x, n),
                inputs=((2, 2, rows, 11),),
                dims=((2,),),
                grid=(((2, 3),), ((3, 1),)),
                uneven=1,
                forward=moved,
                backward=moved,
            )
        )
    samples += [
        Sample(
            op=op,
            run=run,
            inputs=(shape,),
            dims=dims,
            grid=grid,
            make=make,
            forward=forward,
            backward=back,
            bf16="3d" not in op,
        )
        for op, run, shape, dims, grid, make, forward, back in (
            (
                "adaptive_avg_pool2d",
                lambda x: F.adaptive_avg_pool2d(x, 1),
                (2, 2, 8, 9),
                ((2,), (3,)),
                (((2, 3),), ((1, 3),)),
                lambda x: x,
                1,
                0,
            ),
            (
                "adaptive_avg_pool2d",
                lambda x: F.adaptive_avg_pool2d(x, (1, 3)),
                (2, 8, 9),
                ((1,),),
                (((1, 2),), ((0, 1),)),
                lambda x: x,
                1,
                0,
            ),
            (
                "adaptive_max_pool2d_with_indices",
                lambda x: F.adaptive_max_pool2d(x, 1, return_indices=True),
                (2, 2, 8, 9),
                ((2,), (3,)),
                (((2, 3),), ((3, 2),)),
                _tied,
                2,
                0,
            ),
            (
                "adaptive_max_pool2d",
                lambda x: F.adaptive_max_pool2d(x, (3, 1)),
                (2, 2, 8, 9),
                ((3,),),
                (((2, 3),), ((3, 0),)),
                _tied,
                2,
                0,
            ),
            (
                "adaptive_avg_pool1d",
                lambda x: F.adaptive_avg_pool1d(x, 5),
                (2, 2, 11),
                ((2,),),
                (((0, 2),),),
                lambda x: x,
                1,
                1,
            ),
            (
                "adaptive_avg_pool3d",
                lambda x: F.adaptive_avg_pool3d(x, (4, None, 3)),
                (1, 2, 9, 8, 7),
                ((2,),),
                (((2, 4),),),
                lambda x: x,
                1,
                1,
            ),
            (
                "adaptive_max_pool1d",
                lambda x: F.adaptive_max_pool1d(x, 5),
                (2, 2, 11),
                ((2,),),
                (((0, 2),),),
                _tied,
                1,
                1,
            ),
            (
                "adaptive_max_pool1d_with_indices",
                lambda x: torch.adaptive_max_pool1d(x, 5),
                (2, 2, 11),
                ((2,),),
                (((0, 2),),),
                _tied,
                1,
                1,
            ),
            (
                "adaptive_max_pool3d_with_indices",
                lambda x: F.adaptive_max_pool3d(x, (4, None, 3), return_indices=True),
                (1, 2, 9, 8, 7),
                ((2,),),
                (((2, 4),),),
                _tied,
                1,
                1,
            ),
        )
    ]
    return samples


def _straddling(run: Callable[[Tensor], Tensor], extent: int, width: int) -> Callable[[int], int]:
    """Returns whether rows move: where an output reads rows that the owner of its centre does not hold."""

    def moved(ranks: int) -> int:
        rows = torch.eye(extent, dtype=torch.float64).view(extent, 1, extent, 1).expand(-1, -1, -1, width)
        reads = (run(rows) != 0).any(3).squeeze(1).T  # (outputs, rows)
        owner = torch.arange(ranks).repeat_interleave(torch.tensor(chunk_sizes(extent, ranks)))
        centre = (2 * torch.arange(len(reads)) + 1) * extent // (2 * len(reads))
        return int((reads & (owner != owner[centre].unsqueeze(1))).any())

    return moved


def resamplings() -> list[Sample]:
    """Every mode up and down, by sizes and by factors that do and do not divide the rows."""
    samples = []
    sizes: tuple[dict[str, Any], ...] = (
        {"scale_factor": 2},
        {"scale_factor": 0.5},
        {"scale_factor": (1.5, 1.0)},
        {"scale_factor": (1.7, 2.3)},
        {"scale_factor": (1.04, 1.06)},
        {"scale_factor": (1.7, 0.45), "recompute_scale_factor": True},
        {"size": (31, 9)},
        {"size": (24, 17)},
        {"size": (5, 2)},
    )
    modes: tuple[dict[str, Any], ...] = (
        {"mode": "nearest"},
        {"mode": "nearest-exact"},
        {"mode": "bilinear"},
        {"mode": "bilinear", "align_corners": True},
        {"mode": "bilinear", "antialias": True},
        {"mode": "bicubic"},
        {"mode": "bicubic", "align_corners": True},
        {"mode": "bicubic", "antialias": True},
        {"mode": "bilinear", "antialias": True, "align_corners": True},
        {"mode": "area"},
    )
    for mode in modes:
        for size in sizes:
            differs = "antialias" in mode or mode["mode"] == "bicubic"
            if differs and size == {"scale_factor": (1.04, 1.06)}:
                continue  # torch 2.13 ignores factors that change no extent in one of the two passes

            def run(x: Tensor, options: dict[str, Any] = size | mode) -> Tensor:
                return F.interpolate(x, **options)

            moved = _straddling(run, 24, 13)
            samples.append(
                Sample(
                    op="interpolate",
                    run=run,
                    bf16="antialias" not in mode,
                    inputs=((2, 2, 24, 13),),
                    dims=((2,),),
                    grid=(((2, 3),), ((3, 0),)),
                    forward=moved,
                    backward=moved,
                    uneven=1,
                )
            )
    samples += [
        Sample(
            op="interpolate",
            run=lambda x, o=options: F.interpolate(x, **o),
            inputs=(shape,),
            dims=dims,
            grid=grid,
            forward=moved,
            backward=moved,
            uneven=1,
        )
        for shape, dims, grid, moved, options in (
            ((4, 3, 6, 8), ((0,), (1,)), (((0, 1),),), 0, {"scale_factor": 2, "mode": "bilinear"}),
            ((2, 2, 12, 12), ((2,), (3,)), (), 1, {"scale_factor": 2, "mode": "bilinear"}),
            ((2, 2, 24, 24), ((2,), (3,)), (), 0, {"scale_factor": 0.5, "mode": "bilinear"}),
            (
                (2, 2, 12, 12),
                ((2,), (3,)),
                (),
                1,
                {"size": (23, 23), "mode": "bilinear", "align_corners": True},
            ),
            ((2, 2, 12, 12), ((2,), (3,)), (), 0, {"scale_factor": 2}),
            ((2, 2, 12, 7), ((2,),), (), 0, {"size": (12, 9), "mode": "bicubic"}),
            ((2, 2, 11), ((2,),), (((0, 2),),), 1, {"scale_factor": 2, "mode": "linear"}),
            ((2, 2, 11), ((2,),), (((2, 1),),), 1, {"size": 9, "mode": "linear", "align_corners": True}),
            ((2, 2, 12), ((2,),), (((2, 1),),), 1, {"size": 7}),
            ((1, 2, 6, 7, 8), ((2,), (3,), (4,)), (((2, 4),),), 1, {"scale_factor": 2, "mode": "trilinear"}),
            (
                (1, 2, 6, 7, 8),
                ((2,), (4,)),
                (((2, 4),),),
                1,
                {"size": (9, 5, 11), "mode": "trilinear", "align_corners": True},
            ),
            ((1, 2, 6, 7, 8), ((2,),), (((2, 4),),), 0, {"scale_factor": 2, "mode": "nearest-exact"}),
            ((1, 2, 6, 7, 8), ((2,),), (((2, 4),),), 1, {"size": 5, "mode": "area"}),
        )
    ]
    return samples


def blocks() -> list[Sample]:
    samples = [
        Sample(
            op=op,
            run=run,
            inputs=(shape,),
            dims=dims,
            grid=grid,
            forward=moved,
            backward=moved,
            uneven=1,
        )
        for op, run, shape, dims, grid, moved in (
            (
                "pixel_shuffle",
                lambda x: F.pixel_shuffle(x, 2),
                (4, 8, 7, 6),
                ((0,), (2,), (3,)),
                (((2, 3),), ((3, 0),)),
                0,
            ),
            (
                "pixel_unshuffle",
                lambda x: F.pixel_unshuffle(x, 2),
                (4, 3, 24, 24),
                ((0,), (2,), (3,)),
                (((2, 3),), ((3, 0),)),
                0,
            ),
            (
                "pixel_unshuffle",
                lambda x: F.pixel_unshuffle(x, 3),
                (3, 15, 9),
                ((1,),),
                (((2, 1),),),
                1,
            ),
            (
                "channel_shuffle",
                lambda x: F.channel_shuffle(x, 3),
                (4, 6, 5, 4),
                ((0,), (2,), (3,)),
                (((2, 3),), ((3, 0),)),
                0,
            ),
            (
                "unfold",
                lambda x: F.unfold(x, (3, 2), (2, 1), (1, 1), (2, 1)),
                (2, 3, 12, 7),
                ((2,),),
                (((1, 2),), ((2, 0),)),
                1,
            ),
            (
                "unfold",
                lambda x: F.unfold(x, 1),
                (4, 3, 12, 7),
                ((0,), (1,), (2,)),
                (((1, 2),), ((2, 0),)),
                0,
            ),
        )
    ]
    samples += [
        Sample(
            op="fold",
            run=lambda x, o=options: F.fold(x.permute(0, 3, 1, 2).flatten(2), *o),
            inputs=((2, 5, 4, 12),),
            dims=((1,),),
            grid=(((1, 0),),),
            forward=1,
            backward=1,
        )
        for options in (((6, 6), (2, 3), 1, 0, 1), ((10, 4), 2, 2, 1, (2, 1)))
    ]
    return samples


SAMPLES = [
    *convolutions(),
    *transposed(),
    *paddings(),
    *_modules(),
    *poolings(),
    *adaptive(),
    *resamplings(),
    *blocks(),
]
