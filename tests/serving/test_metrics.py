"""What Prometheus reads."""

from __future__ import annotations

import pytest

from kdstream.serving.metrics import family


@pytest.mark.parametrize(
    "value, shown",
    [(0, "0"), (0.0, "0"), (1234567, "1234567"), (123456789012345, "123456789012345"), (12345678.25, "12345678.25")],
)
def test_a_counter_is_written_whole_however_long_it_has_run(value, shown):
    text = family("segments_total", "counter", "Segments.", "model", {"tiny": value})
    assert text.splitlines()[-1] == f'kdstream_segments_total{{model="tiny"}} {shown}'
