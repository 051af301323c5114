"""The arithmetic of large runs, against its own formulas at the ends where they are plain."""

import pytest
from plan import Device
from scale import TARGET, main, peak_memory, phases_of

from mixsd_lightning.sizes import Shape, shape_by_name


@pytest.fixture(scope="module")
def shape() -> Shape:
    """A model of the paper."""
    return shape_by_name("Qwen/Qwen3-1.7B")


def test_work_grows_with_the_facts_and_shrinks_with_the_devices(shape: Shape) -> None:
    one, eight = Device(), Device(8 * Device.teraflops, Device.utilisation, 8 * Device.bandwidth)
    few, many = (phases_of(shape, count, 7, 10, 256, one) for count in (1000, 50_000))
    for small, large, fast in zip(few, many, phases_of(shape, 50_000, 7, 10, 256, eight), strict=True):
        assert large.seconds == pytest.approx(50 * small.seconds)
        assert large.seconds == pytest.approx(8 * fast.seconds)


def test_few_facts_in_flight_wait_for_the_weights(shape: Shape) -> None:
    alone, _ = phases_of(shape, 1000, 2, 1, 1, Device())
    assert alone.seconds == pytest.approx(1000 * 2 * TARGET * 2 * shape.num_parameters / (Device.bandwidth * 1e9))
    together, _ = phases_of(shape, 1000, 2, 1, 1000, Device())
    assert together.seconds == pytest.approx(together.flops / (Device.teraflops * 1e12 * Device.utilisation))


def test_operations_are_two_and_eight_for_each_weight_and_token(shape: Shape) -> None:
    targets, training = phases_of(shape, 1000, 7, 10, 256, Device())
    assert targets.flops == pytest.approx(2 * shape.num_parameters * targets.tokens, rel=0.1)
    # A forward pass, one more for the activations, and a backward pass of two.
    assert training.flops == pytest.approx(8 * shape.num_linear * training.tokens, rel=0.1)


def test_sharing_needs_less_memory_and_an_adapter_less_still(shape: Shape) -> None:
    peaks = [peak_memory(shape, devices) for devices in (1, 8, 64)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > 8 * shape.num_parameters  # weights, gradients and two moments of two bytes each
    assert all(peak_memory(shape, devices, lora_rank=64) < peak for devices, peak in zip((1, 8, 64), peaks, strict=True))


def test_tables_have_a_row_for_each_model_and_number_of_facts(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--facts", "1e4", "1e6", "--devices", "1", "64", "--memory", "40"])
    memory, times = (text.splitlines() for text in capsys.readouterr().out.split("\n\n"))
    assert len(memory) == 2 + 3
    assert "(too much)" in memory[-1]
    assert len(times) == 2 + 3 * 2
    assert {line.count("|") for line in memory} == {1 + 1 + 2 * 2}
    assert {line.count("|") for line in times} == {1 + 5 + 2 * 2}
