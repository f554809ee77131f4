"""Batches of like lengths, in an order that chance decides and the number of processes does not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from statistics import fmean

import pytest
from lhotse import MonoCut
from lhotse.cut import Cut

from kdstream.config.sections import DataConfig
from kdstream.data.augment import Epoch
from kdstream.data.batch import filled
from kdstream.data.cuts import iterate
from kdstream.data.sampler import HELD, Batches, Share, cost_of, halved, seconds_of, windows_of

SIZE = 4000  # cuts in a window of these tests


def made_cuts(count: int) -> list[Cut]:
    """Lengths like LibriSpeech's: two thirds have 12 to 16.5 s, the others 1.5 to 16 s."""
    rng = random.Random(0)
    lengths = ((1.5, 16.0), (12.0, 16.5), (12.0, 16.5))
    return [MonoCut(f"c{index}", 0, round(rng.uniform(*rng.choice(lengths)), 3), 0) for index in range(count)]


def batches_of(
    cuts: list[Cut], epoch: int = 1, first: tuple[int, int] = (0, 0), max_duration: float = 100.0, shuffle: bool = True
) -> Batches:
    def windows(_: Epoch, number: int) -> Iterator[tuple[int, Iterator[Cut]]]:
        for index, window in enumerate(windows_of(cuts, random.Random(epoch), SIZE)):
            if index < number:
                list(window)
            else:
                yield index, window

    return Batches(windows, DataConfig(max_duration=max_duration, shuffle=shuffle), Epoch(0, epoch), first)


def ids(batches) -> list[list[str]]:
    return [[cut.id for cut in iterate(batch)] for batch in batches]


def wait(batches: list[list[Cut]], world_size: int) -> float:
    """Mean over steps of what the slowest process computes, over what all compute in the mean; 1 is fair."""
    steps = [batches[begin : begin + world_size] for begin in range(0, len(batches) - world_size + 1, world_size)]
    costs = [[cost_of(batch) for batch in step] for step in steps]
    return fmean(max(step) / fmean(step) for step in costs)


@pytest.mark.parametrize("count", [1, 900, 2 * SIZE])
@pytest.mark.parametrize("max_duration", [10.0, 100.0])
def test_every_cut_comes_once_and_padding_never_overfills_a_batch(count: int, max_duration: float) -> None:
    cuts = made_cuts(count)
    for epoch in (1, 2):
        batches = [list(iterate(batch)) for batch in batches_of(cuts, epoch, max_duration=max_duration)]
        assert sorted(cut.id for batch in batches for cut in batch) == sorted(cut.id for cut in cuts)
        largest = [len(batch) * max(cut.duration for cut in batch) for batch in batches if len(batch) > 1]
        assert max(largest, default=0.0) <= max_duration


@pytest.fixture(scope="module")
def an_epoch() -> list[list[Cut]]:
    return [list(iterate(batch)) for batch in batches_of(made_cuts(9000), max_duration=200.0)]


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_processes_that_take_consecutive_batches_have_equal_work(an_epoch, world_size: int) -> None:
    fair = wait(an_epoch, world_size) - 1
    assert fair < 0.03
    assert fair < 0.4 * (wait(random.Random(0).sample(an_epoch, len(an_epoch)), world_size) - 1)


def test_groups_stay_whole_from_window_to_window(an_epoch) -> None:
    begin_of_last = len(an_epoch) // 2  # in the second window or later
    begin_of_last -= begin_of_last % HELD
    fair = wait(an_epoch[begin_of_last:], HELD) - 1
    assert fair < 0.5 * (wait(an_epoch[begin_of_last + HELD // 2 :], HELD) - 1)


def test_chance_decides_which_batches_follow_and_which_cuts_meet() -> None:
    cuts = made_cuts(9000)
    first, second = ([list(iterate(batch)) for batch in batches_of(cuts, epoch)] for epoch in (1, 2))
    pairs = [{frozenset(pair) for batch in ids(epoch) for pair in pairwise(sorted(batch))} for epoch in (first, second)]
    assert len(pairs[0] & pairs[1]) < 0.1 * len(pairs[0])
    lengths = [fmean(cut.duration for cut in batch) for batch in first]
    groups = [fmean(lengths[begin : begin + HELD]) for begin in range(0, len(lengths) - HELD, HELD)]
    deviations = [length - fmean(groups) for length in groups]
    variance = fmean(deviation**2 for deviation in deviations)
    following = fmean(a * b for a, b in pairwise(deviations)) / variance  # correlation; 2 / sqrt(groups) by chance
    assert abs(following) < 2 / len(groups) ** 0.5
    assert ids(first) == ids(batches_of(cuts, 1)) and ids(first) != ids(second)


def test_an_epoch_of_few_batches_has_them_in_wholly_random_order() -> None:
    starts = {min(index for index, batch in enumerate(ids(batches_of(made_cuts(60), epoch))) if "c0" in batch)
              for epoch in range(30)}  # fmt: skip
    assert len(starts) > 5


def test_without_shuffling_every_epoch_is_the_same() -> None:
    cuts = made_cuts(900)
    same = [ids(Batches(lambda *_: iter([(0, iter(cuts))]), DataConfig(shuffle=False), Epoch(0, 0))) for _ in range(2)]
    assert same[0] == same[1]


def test_an_epoch_goes_on_from_the_window_of_any_batch() -> None:
    cuts = made_cuts(9000)
    batches = batches_of(cuts)
    whole, windows = [], []
    for number, batch in enumerate(batches):
        whole.append(ids([batch])[0])
        windows.append(batches.window_of(number))  # asked while that batch is the latest
    assert windows == [batches.window_of(number) for number in range(len(whole))]
    assert len(set(windows)) >= 3
    for number in [*range(0, len(whole), 307), len(whole) - 1]:
        first = windows[number]
        resumed = batches_of(cuts, first=first)
        rest = ids(Share(resumed, 1, 0, skipped=number - first[1]))
        assert rest == whole[number:]
        assert resumed.window_of(number) == first


def test_what_has_been_read_is_told_with_its_padding() -> None:
    cuts = made_cuts(900)
    order = batches_of(cuts, epoch=3)
    batches = [list(iterate(batch)) for batch in order]
    padded = sum(len(batch) * max(cut.duration for cut in batch) for batch in batches)
    seconds = sum(cut.duration for cut in cuts)
    expected = f"Epoch 3: {len(batches)} batches, {seconds / 3600:.2f} h; {1 - seconds / padded:.1%} of"
    assert str(order) == f"{expected} what is computed is padding"


def test_a_long_cut_among_short_ones_ends_a_batch() -> None:
    cuts = [MonoCut(f"c{index}", 0, seconds, 0) for index, seconds in enumerate([1.0, 1.0, 18.0, 1.0, 1.0, 1.0])]
    batches = [[cut.id for cut in batch] for batch in filled(cuts, 3.0, seconds_of)]
    assert batches == [["c0", "c1"], ["c2"], ["c3", "c4", "c5"]]
    assert [len(batch) for batch in filled(cuts, 54.0, seconds_of)] == [3, 3]


def test_the_batches_with_most_cuts_are_halved_until_there_are_enough() -> None:
    batches = list(filled(made_cuts(1000), 100.0, seconds_of))[: 3 * HELD - 2]
    whole = halved(batches, 3 * HELD)
    assert len(whole) == 3 * HELD
    assert sorted(cut.id for batch in whole for cut in batch) == sorted(cut.id for batch in batches for cut in batch)
    most = sorted(map(len, batches))[-2:]
    assert Counter(map(len, batches)) - Counter(map(len, whole)) == Counter(most)
    assert halved(whole, HELD) == whole
    assert sorted(map(len, halved(whole[:1], 100))) == [1] * len(whole[0])


@pytest.mark.parametrize("world_size", [2, 3, 5, 8, 16])
def test_no_process_gets_more_than_max_duration_of_what_is_left_over(world_size: int) -> None:
    rng = random.Random(1)
    cuts: list[Cut] = [MonoCut(f"c{index}", 0, 20 ** rng.random(), 0) for index in range(900)]  # 1 to 20 s
    for epoch in range(1, 9):
        batches = list(batches_of(cuts, epoch))
        ranks = [[list(iterate(b)) for b in Share(batches, world_size, rank)] for rank in range(world_size)]
        assert {len(rank) for rank in ranks} == {-(-len(batches) // world_size)}
        assert sorted(cut.id for rank in ranks for batch in rank for cut in batch) == sorted(cut.id for cut in cuts)
        padded = [len(batch) * max(cut.duration for cut in batch) for rank in ranks for batch in rank if len(batch) > 1]
        assert max(padded) <= 100.0


def test_fewer_cuts_than_processes_are_dropped_in_the_end() -> None:
    batches = list(batches_of(made_cuts(3)))
    assert [ids(Share(batches, 4, rank)) for rank in range(4)] == [[], [], [], []]
    assert sorted(str(ids(Share(batches, 3, rank))) for rank in range(3)) == ["[['c0']]", "[['c1']]", "[['c2']]"]
