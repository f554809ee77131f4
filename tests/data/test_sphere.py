"""NIST SPHERE files are read without sph2pipe, each channel of its own and from any second on."""

from __future__ import annotations

import numpy as np
import pytest
from lhotse import MonoCut, Recording
from lhotse.audio import AudioLoadingError
from lhotse.audio.backend import LibsndfileBackend, get_current_audio_backend, set_current_audio_backend

from kdstream.data.reading import read_audio
from kdstream.data.sphere import sphere_without_sph2pipe
from support.corpora import write_sphere
from support.data import error_of
from support.sound import tone


@pytest.mark.parametrize("coding, tolerance", [("pcm", 1e-4), ("ulaw", 0.02)])
def test_each_channel_is_read_from_any_second_on(tmp_path, coding, tolerance):
    both = np.stack([tone(2.0, hertz=300.0), tone(2.0, hertz=700.0)], axis=1)
    write_sphere(tmp_path / "call.sph", both, 16000, coding)
    with sphere_without_sph2pipe():
        recording = Recording.from_file(tmp_path / "call.sph")
    assert (recording.num_channels, recording.sampling_rate, recording.num_samples) == (2, 16000, 32000)
    for channel in (0, 1):
        heard = read_audio(MonoCut("cut", 0.5, 1.0, channel, [], recording=recording)).numpy()
        np.testing.assert_allclose(heard, both[8000:24000, channel], atol=tolerance)


def test_a_file_in_another_coding_and_one_that_is_cut_short_are_named(tmp_path):
    path = tmp_path / "talk.sph"
    write_sphere(path, tone(1.0)[:, None], 16000)
    with sphere_without_sph2pipe():
        cut = Recording.from_file(path).to_cut()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"-s3 pcm", b"-s3 shn"))
    message = error_of(lambda: read_audio(cut))
    assert f"{path}: damaged, or in a coding that libsndfile does not read" in message
    with sphere_without_sph2pipe(), pytest.raises(AudioLoadingError, match="sph2pipe' binary is not installed"):
        Recording.from_file(path)
    path.write_bytes(whole[:-8000])
    assert f"{path}: " in error_of(lambda: read_audio(cut))


def test_a_backend_that_the_user_chose_stays(tmp_path):
    before = get_current_audio_backend()
    with sphere_without_sph2pipe():
        assert get_current_audio_backend() is not before
    assert get_current_audio_backend() is before
    chosen = set_current_audio_backend(LibsndfileBackend())
    try:
        with sphere_without_sph2pipe():
            assert get_current_audio_backend() is chosen
    finally:
        set_current_audio_backend(before)
