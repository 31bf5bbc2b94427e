import math

from train.spikes import SpikeConfig, SpikeGuard


def judged(norms: list[float], guard: SpikeGuard) -> list[bool]:
    return [guard.skips(norm) for norm in norms]


def test_a_spike_is_left_out_and_does_not_raise_the_median() -> None:
    guard = SpikeGuard(SpikeConfig(factor=4, warmup=3))
    assert judged([1.0, 9.0, 1.0, 1.1, 5.0, 1.0, 4.5, 1.2], guard) == [*[False] * 4, True, False, True, False]
    assert guard.skipped == 2


def test_what_is_not_finite_is_left_out_from_the_first_step_and_ends_the_training_when_it_stays() -> None:
    guard = SpikeGuard(SpikeConfig(in_a_row=2))
    assert judged([math.nan, math.inf], guard) == [True, True]
    assert not guard.exhausted
    assert guard.skips(math.nan)
    assert guard.exhausted


def test_a_new_level_is_believed_after_a_while() -> None:
    guard = SpikeGuard(SpikeConfig(factor=3, warmup=2, in_a_row=2, window=3))
    assert judged([1, 1, 1, 50, 50, 50, 50, 50], guard) == [False, False, False, True, True, False, False, False]
    assert not guard.exhausted


def test_a_source_with_larger_norms_is_not_left_out_for_good() -> None:
    norms = [20.0 if step % 20 == 19 else 1.0 for step in range(2_000)]
    guard = SpikeGuard(SpikeConfig())
    assert 0 < sum(judged(norms, guard)) <= 5 * 2_000 / 100
    levels = [1.0] * 300 + [20.0] * 300
    guard = SpikeGuard(SpikeConfig())
    assert sum(judged(levels, guard)) == 5, "a level that stays is believed"


def test_a_window_shorter_than_the_patience_believes_a_new_level_all_the_same() -> None:
    guard = SpikeGuard(SpikeConfig(window=3))
    assert judged([1.0] * 3 + [50.0] * 6, guard) == [False] * 3 + [True] * 5 + [False]
    assert not guard.exhausted
    assert sum(judged([50.0] * 20, guard)) == 5, "once more, until the median is the new level"


def test_a_window_shorter_than_the_warmup_is_enough() -> None:
    guard = SpikeGuard(SpikeConfig(window=3))
    assert judged([1.0, 1.0, 1.0, 99.0], guard) == [False, False, False, True]


def test_a_resumed_guard_decides_alike() -> None:
    norms = [1.0, 1.2, 0.9, 7.0, 1.0, 8.0, 1.1]
    config = SpikeConfig(factor=5, warmup=3)
    whole = judged(norms, SpikeGuard(config))
    first, second = SpikeGuard(config), SpikeGuard(config)
    begin = judged(norms[:4], first)
    second.load(first.facts())
    assert begin + judged(norms[4:], second) == whole
    assert second.skipped == 2
