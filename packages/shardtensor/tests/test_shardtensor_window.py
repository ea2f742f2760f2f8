"""Convolution, padding, halos and a small forecaster on uneven shards against one process."""

from random import Random

import pytest
import torch
import torch.nn.functional as F
from shard_local_attention import local_attention
from shard_ranks import close, compare, layouts, names, random, registry, shard
from shard_samples import draw

from shardtensor import (
    ShardTensor,
    UnsupportedShardedOp,
    fetch,
    halo_exchange,
    overlap,
    pole_pad,
    traffic,
)

CASES, case = registry()


@case()
def convolution_windows(mesh):
    """Stride phases, even kernels, dilation and padding, also where windows are wider than a shard."""
    x = random(2, 2, 9, 5)
    for kernel, stride, padding, dilation in (
        ((3, 3), 1, 1, 1),
        ((3, 3), 2, 1, 1),
        ((3, 3), 2, 0, 1),
        ((2, 2), 2, 0, 1),
        ((2, 3), 1, (1, 0), 1),
        ((4, 1), 3, (2, 0), 1),
        ((3, 1), 1, (4, 0), 4),
        ((7, 1), 1, (3, 0), 1),
        ((1, 1), 1, 0, 1),
        ((1, 1), 3, 0, 1),
        ((3, 3), 1, "same", 1),
        ((4, 2), 1, "valid", 2),
        ((9, 1), 1, 0, 1),
    ):
        weights = [random(3, 2, *kernel, seed=2), random(3, seed=3)]
        conv = lambda x, w, b, s=stride, p=padding, d=dilation: F.conv2d(x, w, b, s, p, d)  # noqa: E731
        compare(conv, mesh, [(x, 2)], weights=weights)
    compare(conv, mesh, [(x, 0)], weights=weights)


@case()
def convolution_forms(mesh):
    compare(F.conv1d, mesh, [(random(2, 3, 8), 2)], weights=[random(4, 3, 3, seed=1)])
    grouped = lambda x, w: F.conv2d(x, w, groups=2, padding=1)  # noqa: E731
    compare(grouped, mesh, [(random(1, 4, 6, 5), 3)], weights=[random(4, 2, 3, 3)])
    solid = lambda x, w: F.conv3d(x, w, padding=1)  # noqa: E731
    compare(solid, mesh, [(random(1, 2, 3, 6, 4), 3)], weights=[random(2, 2, 3, 3, 3)])
    compare(
        lambda x, w: F.conv2d(x, w, padding=1), mesh, [(random(3, 6, 5), 1)], weights=[random(2, 3, 3, 3)]
    )


@case()
def convolution_modules(mesh):
    for mode in ("zeros", "reflect", "replicate", "circular"):
        layer = torch.nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode=mode)
        torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
        torch.nn.init.zeros_(layer.bias)
        run = lambda x, w, m=layer: torch.func.functional_call(m, {"weight": w}, (x,))  # noqa: E731
        compare(run, mesh, [(random(2, 2, 9, 6), 2)], weights=[random(3, 2, 3, 3, seed=4)])


@case()
def padding(mesh):
    x = random(2, 3, 7, 6)
    for dim in (2, 3):
        for mode in ("constant", "reflect", "replicate", "circular"):
            for width in ((0, 0, 0, 1), (1, 2, 3, 2), (0, 0, 4, 0), (5, 5, 5, 5)):
                compare(lambda x, m=mode, p=width: F.pad(x, p, mode=m), mesh, [(x, dim)])
        compare(lambda x: F.pad(x, (1, 0, 2, 1), value=3.5), mesh, [(x, dim)])
        compare(lambda x: F.pad(x, (-1, 2, 1, -3)), mesh, [(x, dim)])


@case()
def circular_padding_serves_what_follows(mesh):
    """Windows that fit into the halo of the padding exchange nothing, all others exchange for themselves."""

    def windows(kernel, dilation=1, stride=1):
        return lambda x: F.conv2d(x, random(3, 2, kernel, kernel), stride=stride, dilation=dilation)

    def written(x):
        y = F.pad(x, (1, 2, 1, 2), "circular")
        y.add_(x.sum())
        return windows(4)(y)

    def partly_written(x):
        y = F.pad(x, (1, 2, 1, 2), "circular")
        y[0, 0, 5, 5] = 3.0  # one rank has it
        return windows(4)(y)

    def changed(x):
        y = F.pad(x, (1, 2, 1, 2), "circular")
        y.local = y.local * 2
        return windows(4)(y)

    following = {
        "as wide": (lambda x: windows(4)(x), 0),
        "narrower": (lambda x: windows(2)(x), 0),
        "strided": (lambda x: windows(3, stride=2)(x), 0),
        "wider": (lambda x: windows(3, dilation=2)(x), 1),
        "pooled": (lambda x: F.max_pool2d(x, 3, 1), 0),
        "with zeros": (lambda x: F.avg_pool2d(x, 3, 1, 1), None),
    }
    x = random(2, 2, 12, 12)
    for dim in (2, 3):
        for name, (after, moved) in following.items():
            run = lambda x, after=after: after(F.pad(x, (1, 2, 1, 2), "circular"))  # noqa: E731
            compare(run, mesh, [(x, dim)])
            with torch.no_grad():
                padded = F.pad(shard(x, mesh, dim), (1, 2, 1, 2), "circular")
                with traffic() as there:
                    after(padded)
            assert moved is None or len(there) == moved * (mesh.size() > 1), name
        compare(written, mesh, [(x, dim)])
        compare(partly_written, mesh, [(x, dim)])
        part = shard(x, mesh, dim)
        part.local.requires_grad_(False)
        close(changed(part), windows(4)(2 * F.pad(x, (1, 2, 1, 2), "circular")))
        with torch.inference_mode():
            close(
                windows(4)(F.pad(part, (1, 2, 1, 2), "circular")),
                windows(4)(F.pad(x, (1, 2, 1, 2), "circular")),
            )


@case()
def halo(mesh):
    x = random(2, 7, 3)
    for rows in layouts(mesh, 7):
        part = shard(x, mesh, 1, rows)
        own = part.local_slices()[1]
        for before, after in ((1, 1), (0, 3), (5, 0)):
            got = halo_exchange(part, 1, before, after)
            empty = own.start == own.stop
            close(got, x[:, 0:0] if empty else x[:, max(own.start - before, 0) : own.stop + after])
            wrapped = halo_exchange(part, 1, before, after, periodic=True)
            index = [] if empty else [g % 7 for g in range(own.start - before, own.stop + after)]
            close(wrapped, x[:, index])


@case()
def fetch_adds_gradients(mesh):
    """Every rank asks for rows 1:4 twice: their gradient is 2 P, times the gradient that each rank sends."""
    for rows in layouts(mesh, 6):
        part = shard(random(6, 2), mesh, 0, rows)
        got = fetch(part, 0, [[(1, 4), (0, 0), (1, 4)]] * mesh.size())
        close(got, random(6, 2)[[1, 2, 3, 1, 2, 3]])
        got.backward(torch.ones_like(got))
        want = torch.zeros(6, 2)
        want[1:4] = 2 * mesh.size()
        close(part.grad, want)
    with pytest.raises(ValueError, match="within"):
        fetch(part, 0, [[(1, 7)]] * mesh.size())
    with pytest.raises(ValueError, match="not sharded"):
        fetch(part, 1, [[(1, 2)]] * mesh.size())


@case("2", "3")
def window_refusals(mesh):
    x = shard(random(2, 4, 6, 6), mesh, 1)
    with pytest.raises(UnsupportedShardedOp, match="channels"):
        F.conv2d(x, random(3, 4, 3, 3))
    with pytest.raises(RuntimeError, match="larger than the padded input"):
        F.conv2d(shard(random(1, 1, 4, 4), mesh, 2), random(1, 1, 5, 1))
    with pytest.raises(RuntimeError, match="wider"):
        F.pad(shard(random(1, 1, 4, 4), mesh, 2), (0, 0, 4, 0), mode="reflect")


class Projector(torch.nn.Module):
    """A small row-sharded forecaster: pad, patch, local attention, modulation, unpatch, crop, downsample."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = torch.nn.Conv2d(3, 8, 2, stride=2)
        self.position = torch.nn.Parameter(torch.empty(1, 5, 4, 8))
        self.norm = torch.nn.LayerNorm(8)
        self.qkv = torch.nn.Linear(8, 24)
        self.modulate = torch.nn.Linear(6, 16)
        self.out = torch.nn.Linear(8, 12)
        self.coarse = torch.nn.Parameter(torch.empty(5, 9))
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, x, noise):
        n, c, height, width = x.shape
        x = F.pad(x, (0, 0, 0, 1), mode="reflect")
        tokens = self.patch(x).permute(0, 2, 3, 1) + self.position
        shift, scale = self.modulate(F.silu(noise))[:, None, None].chunk(2, -1)
        y = self.norm(tokens) * (1 + scale) + shift
        q, k, v = self.qkv(y).unflatten(-1, (3, 2, 4)).unbind(-3)
        tokens = tokens + local_attention(q, k, v, kernel=(3, 3)).flatten(-2)
        fine = self.out(tokens).reshape(n, 5, width // 2, 2, 2, c)
        fine = fine.permute(0, 5, 1, 3, 2, 4).reshape(n, c, 10, width)[:, :, :height]
        return fine, torch.matmul(self.coarse, F.gelu(fine) + x[:, :, :height])


@case()
def forecaster(mesh):
    """Values and gradients on row-sharded and on plain fields agree; the coarse result is replicated."""
    model, noise = Projector(), random(2, 6, seed=3)
    rows = {1: [(9,)], 2: [(4, 5), (6, 3), (0, 9)], 3: [(4, 2, 3), (2, 0, 7)]}[mesh.size()]
    run = lambda x, *weights: torch.func.functional_call(  # noqa: E731
        model, dict(zip(dict(model.named_parameters()), weights, strict=True)), (x, noise)
    )
    compare(run, mesh, [(random(2, 3, 9, 8), 2)], weights=list(model.parameters()), sizes=rows)
    fine, coarse = model(shard(random(2, 3, 9, 8), mesh, 2, rows[0]), noise)
    assert isinstance(coarse, ShardTensor)
    assert coarse.spec.replicated
    assert fine.sizes == (rows[0],)


def windows(extent, first, last, kernel, stride, padding, dilation):
    """Returns the rows within the domain that outputs first to last - 1 read, by definition."""
    reads = {j * stride - padding + t * dilation for j in range(first, last) for t in range(kernel)}
    return {row for row in reads if 0 <= row < extent}


@case("2", "3", "4", "2x2")
def convolution_moves_only_missing_rows(mesh):
    """Every rank receives the points that its windows read and it does not hold, each once; the gradients of
    these points return."""
    generator = Random(0)
    for kernel, stride, padding, dilation in ((3, 1, 1, 1), (3, 2, 1, 1), (4, 2, 1, 1), (7, 1, 3, 1)):
        for _ in range(3):
            x, weight = random(2, 3, 16, 14), random(4, 3, kernel, kernel, seed=1).requires_grad_()
            dims = (2,) if mesh.ndim == 1 else (2, 3)
            sizes = {m: draw(generator, x.shape[d], mesh.size(m)) for m, d in enumerate(dims)}
            part = shard(x, mesh, dims, sizes)
            with traffic() as there:
                out = F.conv2d(part, weight, None, stride, padding, dilation)
            with traffic() as back:
                out.local.sum().backward()
            held = 1
            needed = 1
            for d in (2, 3):
                own, made = part.local_slices()[d], out.local_slices()[d]
                rows = windows(x.shape[d], made.start, made.stop, kernel, stride, padding, dilation)
                mine = set(range(own.start, own.stop))
                if d in dims and not made.stop - made.start:
                    rows = set()
                elif d not in dims:
                    rows = mine
                held *= len(rows & mine)
                needed *= len(rows)
            each = x[:, :, 0, 0].numel() * x.element_size()
            received = sum(t.received for t in there.transfers)
            returned = sum(t.sent for t in back.transfers if t.kind == "all_to_all")
            assert received == (needed - held) * each, (sizes, kernel, stride)
            assert returned == received


@case("1", "2", "3", "4", "2x2")
def overlapped_convolution(mesh):
    """Overlap of exchange and interior changes no value, no gradient and no collective."""
    sizes = {1: (16,), 2: (7, 9), 3: (5, 6, 5), 4: (4, 4, 3, 5)}[mesh.size(0)]
    for kernel, stride, padding, dilation in (
        (3, 1, 1, 1),
        (3, 2, 1, 1),
        (2, 1, 0, 1),
        (4, 2, 1, 1),
        (3, 1, 1, 2),
    ):
        x, weight, bias = random(2, 3, 16, 6), random(4, 3, kernel, kernel, seed=1), random(4, seed=2)
        results = []
        for enabled in (False, True):
            w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
            part = shard(
                x,
                mesh,
                (2,) if mesh.ndim == 1 else (2, 0),
                {0: sizes, **({1: (1, 1)} if mesh.ndim > 1 else {})},
            )
            with overlap(enabled), traffic() as seen:
                out = F.conv2d(part, w, b, stride, padding, dilation)
                seed = random(*out.shape, seed=3)[out.local_slices()]
                out.local.backward(seed)
            results.append((out.local, part.grad.local, w.grad, b.grad, len(seen), seen.sent))
        for a, b in zip(*results, strict=True):
            if isinstance(a, torch.Tensor):
                close(a, b)
            else:
                assert a == b


@case("2", "3")
def overlap_is_differentiated_once(mesh):
    part, weight = shard(random(1, 2, 12, 6), mesh, 2), random(2, 2, 3, 3, seed=1).requires_grad_()
    with overlap():
        out = F.conv2d(part, weight, padding=1)
    with pytest.raises(UnsupportedShardedOp, match=r"overlap\(False\)"):
        torch.autograd.grad(out.local.sum(), [part.local], create_graph=True)


def polar(x, latitude, longitude, width, *, on_grid, sign):
    """Reference of `pole_pad`: a field is a function on the sphere, read beyond the poles."""
    extent = x.shape[latitude]
    rows = []
    for i in range(-width, extent + width):
        beyond = i < 0 or i >= extent
        over = -i - (not on_grid) if i < 0 else 2 * extent - 1 - on_grid - i
        row = x.select(latitude, over if beyond else i)
        at = longitude - (longitude > latitude)
        rows.append(sign * row.roll(x.shape[longitude] // 2, at) if beyond else row)
    return torch.stack(rows, latitude)


@case("1", "2", "3", "4", "2x2")
def rows_beyond_the_poles(mesh):
    x = random(2, 3, 7, 8)
    layouts = [(2,), (3,), (0,)] if mesh.ndim == 1 else [(2, 3), (3, 2), (0, 3), (2, 0)]
    generator = Random(1)
    for dims in layouts:
        for on_grid, width, sign in ((True, 2, 1.0), (False, 3, -1.0), (False, 7, 1.0), (True, 6, -1.0)):
            sizes = {m: draw(generator, x.shape[d], mesh.size(m)) for m, d in enumerate(dims)}
            plain, part = x.clone().requires_grad_(), shard(x, mesh, dims, sizes)
            want = polar(plain, 2, 3, width, on_grid=on_grid, sign=sign)
            got = pole_pad(part, 2, -1, width, on_grid=on_grid, sign=sign)
            close(got, want)
            seed = random(*want.shape, seed=3)
            want.backward(seed)
            got.local.backward(seed[got.local_slices()])
            close(part.grad, plain.grad)
    signs = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1)
    vector = pole_pad(shard(x, mesh, layouts[0]), 2, 3, 1, on_grid=False, sign=signs)
    for c, sign in enumerate((1.0, -1.0, -1.0)):
        close(vector[:, c], polar(x, 2, 3, 1, on_grid=False, sign=sign)[:, c])


@case("2", "3")
def refusals_of_windows(mesh):
    """Extents are those of the whole tensor, also where the local ones would fit; channels must be whole."""
    x = shard(random(2, 4, 6, 6), mesh, 1)
    for function in (
        lambda x: F.conv_transpose2d(x, random(4, 2, 3, 3)),
        lambda x: F.pixel_shuffle(x, 2),
        lambda x: F.pixel_unshuffle(x, 2),
        lambda x: F.channel_shuffle(x, 2),
    ):
        with pytest.raises(UnsupportedShardedOp, match=r"sharded.*redistribute"):
            function(x)
    rows = shard(random(2, 4, 6, 6), mesh, 2)
    with pytest.raises(UnsupportedShardedOp, match="plain weights"):
        F.conv2d(rows, shard(random(2, 4, 3, 3), mesh, 0))
    with pytest.raises(UnsupportedShardedOp, match="plain weights"):
        F.conv_transpose2d(rows, random(4, 2, 3, 3), shard(random(2), mesh, 0))
    with pytest.raises(RuntimeError, match="output padding"):
        F.conv_transpose2d(rows, random(4, 2, 3, 3), output_padding=1)
    with pytest.raises(RuntimeError, match="strided"):
        F.conv2d(rows, random(2, 4, 3, 3), padding="same", stride=2)
    with pytest.raises(RuntimeError, match="half of"):
        F.max_pool2d(rows, 2, padding=2)
    with pytest.raises(RuntimeError, match=r"invalid|divisible"):
        F.pixel_unshuffle(shard(random(1, 1, 7, 6), mesh, 2), 2)
    with pytest.raises(ValueError, match="size or scale_factor"):
        F.interpolate(rows)
    with pytest.raises(ValueError, match="align_corners"):
        F.interpolate(rows, scale_factor=2, align_corners=True)
    with pytest.raises(UnsupportedShardedOp, match="dimension 3 is sharded"):
        F.unfold(shard(random(2, 4, 6, 6), mesh, 3), 3)
    with pytest.raises(UnsupportedShardedOp, match=r"redistribute.*multiples of 5"):
        F.fold(shard(random(1, 4, 25), mesh, 2), (6, 6), 2)
    with pytest.raises(ValueError, match="half a turn"):
        pole_pad(shard(random(6, 7), mesh, 0), 0, 1, 1, on_grid=True)
    with pytest.raises(ValueError, match="sharded dimension"):
        pole_pad(shard(random(4, 6, 6), mesh, 0), 1, 2, 1, on_grid=True, sign=torch.ones(4, 1, 1))
    with pytest.raises(RuntimeError, match="wider"):
        pole_pad(shard(random(4, 6, 6), mesh, 1), 1, 2, 6, on_grid=True)


@pytest.mark.parametrize("name", names(CASES))
def test_ranks(name, outcome):
    assert name in outcome.passed, outcome.trouble
