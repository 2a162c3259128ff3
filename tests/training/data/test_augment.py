"""SpecAugment masks within its limits and is reproducible."""

from __future__ import annotations

import pytest
import torch

from training.data.augment import SpecAugmentConfig, spec_augment


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(mel: torch.Tensor, config: SpecAugmentConfig, seed: int, fill: float, lengths: list[int]) -> torch.Tensor:
    """Reference, stripe by stripe with the same draws: widths, then positions; time, then frequency."""
    generator, mel = seeded(seed), mel.clone()
    for axis, stripes, width in (
        (0, config.time_stripes, config.time_width),
        (1, config.frequency_stripes, config.frequency_width),
    ):
        draws = torch.rand(2, len(mel), stripes, generator=generator)
        for row in range(len(mel)):
            size = lengths[row] if axis == 0 else mel.shape[2]
            for stripe in range(stripes):
                wide = int(float(draws[0, row, stripe]) * (min(width, size // 4) + 1))
                start = int(float(draws[1, row, stripe]) * (size - wide + 1))
                if axis == 0:
                    mel[row, start : start + wide] = fill
                else:
                    mel[row, :, start : start + wide] = fill
    return mel


@pytest.mark.parametrize("seed", range(5))
def test_spec_augment_equals_the_reference(seed: int) -> None:
    mel, config, lengths = torch.rand(4, 300, 64), SpecAugmentConfig(), [300, 200, 40, 3]
    before = mel.clone()
    found = spec_augment(mel, config, seeded(seed), -7.0, torch.tensor(lengths))
    torch.testing.assert_close(found, reference(mel, config, seed, -7.0, lengths), rtol=0, atol=0)
    torch.testing.assert_close(mel, before, rtol=0, atol=0)


def test_published_widths_are_reached_and_not_exceeded() -> None:
    one = SpecAugmentConfig(time_stripes=1, frequency_stripes=0)
    times = (spec_augment(torch.zeros(400, 1024, 1), one, seeded(0), 1.0)[:, :, 0] > 0).sum(1)
    assert times.min() == 0 and times.max() == 64
    one = SpecAugmentConfig(time_stripes=0, frequency_stripes=1)
    bins = (spec_augment(torch.zeros(400, 1, 128), one, seeded(0), 1.0)[:, 0] > 0).sum(1)
    assert bins.min() == 0 and bins.max() == 8


def test_rows_have_different_masks_and_seeds_are_reproducible() -> None:
    mel = torch.rand(2, 1, 200, 64).expand(2, 8, 200, 64)[0]
    first, second = (spec_augment(mel, SpecAugmentConfig(), seeded(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert len({tuple(row.flatten().tolist()) for row in first}) == 8


def test_padding_is_not_masked_and_rows_are_never_masked_completely() -> None:
    lengths = torch.tensor([20, 50, 100])
    for seed in range(50):
        config = SpecAugmentConfig(frequency_stripes=0)
        hidden = spec_augment(torch.zeros(3, 100, 8), config, seeded(seed), 1.0, lengths)[..., 0] > 0
        for row, length in zip(hidden, lengths.tolist(), strict=True):
            assert not row[length:].any() and row.sum() <= length // 2


def test_zero_stripes_mask_nothing() -> None:
    mel = torch.rand(2, 30, 16)
    assert torch.equal(spec_augment(mel, SpecAugmentConfig(0, 64, 0, 8), seeded(0)), mel)
    with pytest.raises(ValueError, match="negative"):
        SpecAugmentConfig(time_width=-1)
