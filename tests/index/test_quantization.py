"""Frame embeddings survive their compact form."""

from __future__ import annotations

import numpy as np
import pytest

from index.quantization import FrameCodes, encode_frames


def _unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("dim", "worst", "rms"), [(384, 2.5e-3, 5e-4), (1024, 1.8e-3, 3e-4)])
def test_quantisation_preserves_similarities(dim: int, worst: float, rms: float) -> None:
    rng = np.random.default_rng(0)
    frames, queries = _unit(rng.standard_normal((1000, dim))), _unit(rng.standard_normal((50, dim)))
    queries = np.concatenate([queries, frames[:50]])  # some that match a frame
    error = encode_frames(frames).decode() @ queries.T - frames @ queries.T
    assert np.abs(error).max() < worst
    assert np.sqrt(np.mean(error**2)) < rms


def test_codes_take_a_quarter_of_the_size() -> None:
    frames = _unit(np.random.default_rng(1).standard_normal((64, 384)))
    assert len(encode_frames(frames).to_bytes()) == 64 * (384 + 4)


def test_lengths_are_kept() -> None:
    frames = np.random.default_rng(2).standard_normal((20, 32)).astype(np.float32) * np.arange(20)[:, None]
    decoded = FrameCodes.from_bytes(encode_frames(frames).to_bytes(), 32).decode()
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), np.linalg.norm(frames, axis=1), rtol=1e-5)
    assert not decoded[0].any()


@pytest.mark.parametrize("size", [0, 1, 35, 37])
def test_bytes_of_another_shape_are_rejected(size: int) -> None:
    with pytest.raises(ValueError, match="are not frames"):
        FrameCodes.from_bytes(bytes(size), 32)


def test_adding_in_parts_gives_the_same_codes() -> None:
    frames = np.random.default_rng(5).standard_normal((300, 32)).astype(np.float32)
    whole, pieces = encode_frames(frames), FrameCodes(32)
    for part in np.split(frames, [1, 1, 64, 128, 299]):
        pieces.add(part)
    assert len(pieces) == 300 and pieces.to_bytes() == whole.to_bytes()
    stored = FrameCodes.from_bytes(whole.to_bytes(), 32)
    np.testing.assert_array_equal(stored.decode(64, 130), whole.decode()[64:130])
    for wrong in (np.zeros((2, 31)), np.zeros(32), np.full((1, 32), np.nan)):
        with pytest.raises(ValueError):
            pieces.add(wrong)


def test_many_are_decoded_as_one_by_one() -> None:
    rng = np.random.default_rng(3)
    parts = [encode_frames(_unit(rng.standard_normal((count, 6)))) for count in (1, 3, 1, 2, 3, 1)]
    counts, vectors = FrameCodes.decode_many([part.to_bytes() for part in parts], 6)
    assert counts.tolist() == [1, 3, 1, 2, 3, 1]
    np.testing.assert_array_equal(vectors, np.concatenate([part.decode() for part in parts]))
    assert [len(part) for part in FrameCodes.decode_many([], 6)] == [0, 0]
    for broken in (b"", b"123"):
        with pytest.raises(ValueError, match="6 dimensions"):
            FrameCodes.decode_many([parts[0].to_bytes(), broken], 6)
