"""Shards: zarr-python reads what we write and we read what it writes; damage is found."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from wx_data._shards import Scale, ShardCodec, ShardError, ShardReader, crc32c
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


@pytest.mark.parametrize("compression", ["lz4", "lz4hc", "none"])
@pytest.mark.parametrize("columns", [8, 1024])
def test_rows_channels_and_scale_together(tmp_path: Path, compression: str, columns: int) -> None:
    """Small files are read whole, large ones band by band; uncompressed ones straight into the target."""
    codec = ShardCodec(channels=9, rows=90, columns=columns, band=20, compression=compression)
    values, path = _values(codec), tmp_path / "shard"
    path.write_bytes(codec.encode(values))
    assert (path.stat().st_size > 1 << 20) == (columns == 1024)
    reader, rng = ShardReader(codec), np.random.default_rng(1)
    for rows in ((0, 90), (5, 6), (19, 41), (80, 90), (0, 20), (20, 60)):
        for channels in (None, [3], [8, 0, 5], list(range(9))):
            picked = values[0] if channels is None else values[0][channels]
            out = np.full((len(picked), rows[1] - rows[0], columns), np.nan, np.float32)
            reader.read(str(path), out, rows=rows, channels=channels)
            np.testing.assert_array_equal(out, picked[:, slice(*rows)])
            offset, factor = rng.standard_normal((2, len(picked), 1, 1)).astype(np.float32)
            reader.read(str(path), out, rows=rows, channels=channels, scale=Scale(offset, factor))
            np.testing.assert_array_equal(out, (picked[:, slice(*rows)] - offset) * factor)


@pytest.mark.parametrize("compression", ["lz4hc", "none"])
def test_shards_of_other_codecs_are_zarr(tmp_path: Path, compression: str) -> None:
    codec = ShardCodec(channels=3, rows=7, columns=8, band=3, fields=2, compression=compression)
    values = _values(codec)
    path = _write(tmp_path, codec, values)
    np.testing.assert_array_equal(zarr.open_group(tmp_path, mode="r")["data"][0], values)
    zarr.open_group(tmp_path, mode="r+")["data"][0] = values + 1
    out = np.empty((3, 7, 8), np.float32)
    ShardReader(codec).read(str(path), out, field=1)
    np.testing.assert_array_equal(out, values[1] + 1)


def test_any_flipped_byte_of_an_uncompressed_shard_is_found(tmp_path: Path) -> None:
    codec = ShardCodec(channels=6, rows=64, columns=1024, band=16, compression="none")
    path, reader = tmp_path / "shard", ShardReader(codec)
    data = codec.encode(_values(codec))
    out = np.empty((6, 64, 1024), np.float32)
    with open(path, "wb") as file:
        file.write(data)
    for place in np.random.default_rng(0).integers(0, len(data), 100).tolist():
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(bytes([data[place] ^ 1]))
            file.flush()
            with pytest.raises(ShardError):
                reader.read(str(path), out)
            file.seek(place)
            file.write(data[place : place + 1])
    reader.read(str(path), out)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ShardError, match=r"truncated|checksum"):
        reader.read(str(path), out)


def test_more_channels_than_one_system_call_takes(tmp_path: Path) -> None:
    codec = ShardCodec(channels=1500, rows=6, columns=64, band=3, compression="none")
    values, path = _values(codec), tmp_path / "shard"
    path.write_bytes(codec.encode(values))
    out = np.empty((1500, 4, 64), np.float32)
    ShardReader(codec).read(str(path), out, rows=(1, 5))
    np.testing.assert_array_equal(out, values[0][:, 1:5])


def test_a_channel_asked_for_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(CODEC.encode(_values(CODEC)))
    with pytest.raises(ValueError, match="must differ"):
        ShardReader(CODEC).read(str(path), np.empty((2, 7, 8), np.float32), channels=[1, 1])
