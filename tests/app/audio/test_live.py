"""Single Opus packets in Ogg: as other programs read it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from app.audio.decode import decode
from app.audio.live import OggOpusWriter, is_container, packet_samples
from tests.support.audio import opus_packets


def tone(seconds: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(48_000 * seconds)) / 48_000)).astype(np.float32)


@pytest.mark.parametrize("ms", [2.5, 5, 10, 20, 40, 60, 120])
@pytest.mark.parametrize("application", ["voip", "audio"])
def test_a_stream_of_packets(ms: float, application: str) -> None:
    packets = opus_packets(tone(1.2)[:, None], ms, application)
    assert {packet_samples(packet) for packet in packets} == {int(48 * ms)}
    writer = OggOpusWriter()
    data = b"".join(map(writer.push, packets))
    assert is_container(data) and is_container(data[:1]) and not is_container(packets[0])
    samples, rate = soundfile.read(io.BytesIO(data), always_2d=True)  # libsndfile verifies checksums and positions
    assert rate == 48_000 and samples.shape == (len(packets) * 48 * ms, 2)
    np.testing.assert_allclose(samples[:, 0], samples[:, 1], atol=1e-4)
    audio = decode(data, "a")
    assert audio.duration == pytest.approx(len(packets) * ms / 1000) and not audio.notes
    assert np.abs(audio.samples[4_000:12_000]).max() == pytest.approx(0.3, abs=0.05)


def test_both_channels_are_kept() -> None:
    writer, sound = OggOpusWriter(), tone(1.0)
    data = b"".join(map(writer.push, opus_packets(np.stack([sound, -sound], 1), 20)))
    assert np.abs(decode(data, "a").samples[4_000:12_000]).max() > 0.25  # the mean would be silence


@pytest.mark.parametrize("message", [b"", b"\x03", b"\x03\x00", b"\x03\x3f" + bytes(9), bytes(61_296)])
def test_what_is_no_packet(message: bytes) -> None:
    with pytest.raises(ValueError, match=f"A message of {len(message)} bytes is neither"):
        OggOpusWriter().push(message)
