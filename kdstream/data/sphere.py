"""NIST SPHERE files (.sph) without sph2pipe: libsndfile reads most of them, but Lhotse (1.33) asks for that program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import soundfile
from lhotse.audio.backend import (
    AudioBackend,
    CompositeAudioBackend,
    LibsndfileBackend,
    Sph2pipeSubprocessBackend,
    get_current_audio_backend,
    get_default_audio_backend,
    set_current_audio_backend,
)


class SphereBackend(Sph2pipeSubprocessBackend):
    """Reads .sph files with libsndfile, and with sph2pipe those that libsndfile does not open (Shorten)."""

    def read_audio(self, path_or_fd: Any, *args: Any, **kwargs: Any) -> Any:
        return self._reader_of(path_or_fd).read_audio(path_or_fd, *args, **kwargs)

    def info(self, path_or_fd: Any, *args: Any, **kwargs: Any) -> Any:
        return self._reader_of(path_or_fd).info(path_or_fd, *args, **kwargs)

    def _reader_of(self, path: Any) -> AudioBackend:
        try:
            soundfile.info(str(path))
        except soundfile.SoundFileError:
            return Sph2pipeSubprocessBackend()
        return LibsndfileBackend()


@lru_cache(maxsize=1)
def _backend() -> AudioBackend:
    """Lhotse's default backend with `SphereBackend` in place of its own."""
    default: Any = get_default_audio_backend()
    is_sphere = [isinstance(backend, Sph2pipeSubprocessBackend) for backend in default.backends]
    backends = zip(default.backends, is_sphere, strict=True)
    return CompositeAudioBackend([SphereBackend() if is_its else backend for backend, is_its in backends])


@contextmanager
def sphere_without_sph2pipe() -> Iterator[None]:
    """Within it Lhotse reads .sph files as `SphereBackend` does, unless the user chose another audio backend."""
    chosen = get_current_audio_backend()
    if chosen is not get_default_audio_backend():
        yield
        return
    set_current_audio_backend(_backend())
    try:
        yield
    finally:
        set_current_audio_backend(chosen)
