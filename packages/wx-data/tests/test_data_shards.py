"""Shards: zarr-python reads what we write and we read what it writes; damage is found."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from wx_data._shards import ShardCodec, ShardError, ShardReader, crc32c
from wx_data._zarr3 import SmallArray, sharded_metadata, write_group

CODEC = ShardCodec(channels=3, rows=7, columns=8, band=3, fields=2)


def _values(codec: ShardCodec, seed: int = 0) -> np.ndarray:
    shape = (codec.fields, codec.channels, codec.rows, codec.columns)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _write(root: Path, codec: ShardCodec, values: np.ndarray) -> Path:
    leading = {"time": (1, 1), "member": (codec.fields, codec.fields)}
    write_group(root, {}, {}, {"data": sharded_metadata(codec, leading, {})})
    path = root / "data" / "c.0.0.0.0.0"
    path.write_bytes(codec.encode(values))
    return path


def test_crc32c_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720


def test_zarr_python_reads_our_shard(tmp_path: Path) -> None:
    values = _values(CODEC)
    _write(tmp_path, CODEC, values)
    array = zarr.open_group(tmp_path, mode="r")["data"]
    np.testing.assert_array_equal(array[0], values)
    assert array.shards == (1, 2, 3, 9, 8)


@pytest.mark.parametrize(("rows", "band"), [(7, 7), (8, 4), (7, 3), (5, 1)])
def test_we_read_zarr_pythons_shard(tmp_path: Path, rows: int, band: int) -> None:
    codec = ShardCodec(channels=3, rows=rows, columns=8, band=band)
    values = _values(codec)
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=(1, 3, rows, 8),
        chunks=(1, 3, band, 8),
        shards=(1, 3, codec.padded_rows, 8),
        dtype="float32",
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=4), Crc32cCodec()],
        fill_value=float("nan"),
    )
    array[:] = values
    out = np.empty_like(values[0])
    ShardReader(codec).read(str(tmp_path / "a.zarr" / "c" / "0" / "0" / "0" / "0"), out)
    np.testing.assert_array_equal(out, values[0])


def test_every_row_range_of_every_field(tmp_path: Path) -> None:
    values = _values(CODEC)
    path, reader = _write(tmp_path, CODEC, values), ShardReader(CODEC)
    for field in range(2):
        for start in range(7):
            for stop in range(start + 1, 8):
                out = np.full((3, stop - start, 8), np.nan, np.float32)
                reader.read(str(path), out, rows=(start, stop), field=field)
                np.testing.assert_array_equal(out, values[field][:, start:stop])


def test_large_files_are_read_band_by_band(tmp_path: Path) -> None:
    codec = ShardCodec(channels=4, rows=90, columns=1024, band=30)
    values = _values(codec)
    path = tmp_path / "shard"
    path.write_bytes(codec.encode(values))
    assert path.stat().st_size > 1 << 20
    out = np.empty((4, 10, 1024), np.float32)
    ShardReader(codec).read(str(path), out, rows=(55, 65))
    np.testing.assert_array_equal(out, values[0][:, 55:65])


def test_target_may_be_a_view(tmp_path: Path) -> None:
    codec = ShardCodec(channels=3, rows=7, columns=8, band=7)
    path = tmp_path / "shard"
    values = _values(codec)
    path.write_bytes(codec.encode(values))
    target = np.zeros((7, 3, 8), np.float32)
    ShardReader(codec).read(str(path), target.transpose(1, 0, 2))
    np.testing.assert_array_equal(target.transpose(1, 0, 2), values[0])


def test_special_values_survive(tmp_path: Path) -> None:
    codec = ShardCodec(channels=1, rows=1, columns=6, band=1)
    values = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3e38], np.float32).reshape(1, 1, 1, 6)
    path = tmp_path / "shard"
    path.write_bytes(codec.encode(values))
    out = np.empty((1, 1, 6), np.float32)
    ShardReader(codec).read(str(path), out)
    assert out.tobytes() == values.tobytes()


def test_encoding_is_repeatable() -> None:
    codec = ShardCodec(channels=8, rows=64, columns=256, band=64)
    values = _values(codec)
    assert len({codec.encode(values) for _ in range(5)}) == 1


def test_any_flipped_byte_is_found(tmp_path: Path) -> None:
    values = _values(CODEC)
    path, reader = _write(tmp_path, CODEC, values), ShardReader(CODEC)
    data, out = path.read_bytes(), np.empty((3, 7, 8), np.float32)

    def read_all() -> None:
        for field in range(2):
            reader.read(str(path), out, field=field)

    for place in np.random.default_rng(0).integers(0, len(data), 100).tolist():
        damaged = bytearray(data)
        damaged[place] ^= 0x40
        path.write_bytes(bytes(damaged))
        with pytest.raises(ShardError):
            read_all()


def test_truncation_and_absence(tmp_path: Path) -> None:
    path, reader = _write(tmp_path, CODEC, _values(CODEC)), ShardReader(CODEC)
    data, out = path.read_bytes(), np.empty((3, 7, 8), np.float32)
    path.write_bytes(data[:-9])
    with pytest.raises(ShardError, match=f"{len(data)} bytes expected, {len(data) - 9} found"):
        reader.read(str(path), out, size=len(data))
    path.write_bytes(data[:20])
    with pytest.raises(ShardError, match="truncated"):
        reader.read(str(path), out)
    path.unlink()
    with pytest.raises(ShardError, match="missing"):
        reader.read(str(path), out)


def test_chunk_that_zarr_left_out_is_an_error_not_nan(tmp_path: Path) -> None:
    codec = ShardCodec(channels=1, rows=4, columns=4, band=2)
    write_group(tmp_path, {}, {}, {"data": sharded_metadata(codec, {"time": (1, 1)}, {})})
    array = zarr.open_group(tmp_path, mode="r+")["data"]
    array[0, :, :2] = np.ones((1, 2, 4), np.float32)
    out = np.empty((1, 4, 4), np.float32)
    with pytest.raises(ShardError, match="never written"):
        ShardReader(codec).read(str(tmp_path / "data" / "c.0.0.0.0"), out)


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="shape"):
        CODEC.encode(np.zeros((1, 3, 7, 8), np.float32))
    with pytest.raises(ValueError, match="higher than the grid"):
        ShardCodec(channels=1, rows=2, columns=2, band=3)
    with pytest.raises(ValueError, match="at least 1"):
        ShardCodec(channels=0, rows=2, columns=2, band=2)


def test_small_arrays_open_in_zarr(tmp_path: Path) -> None:
    small = {
        "n": SmallArray(np.arange(5, dtype=np.int64), ("n",), {"units": "1"}),
        "name": SmallArray(("é", "", "abc"), ("k",), {}),
        "m": SmallArray(np.random.default_rng(0).random((2, 3)), ("a", "b"), {}),
    }
    write_group(tmp_path, {"Conventions": "CF-1.11"}, small, {})
    group = zarr.open_group(tmp_path, mode="r")
    np.testing.assert_array_equal(group["n"][:], np.arange(5))
    assert list(group["name"][:]) == ["é", "", "abc"]
    np.testing.assert_array_equal(group["m"][:], small["m"].values)
    assert group["n"].attrs["units"] == "1"
