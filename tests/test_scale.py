"""The arithmetic of large runs, against its own formulas at the ends where they are plain."""

import pytest
from plan import Device
from scale import Estimate, Facts, main, peak_memory

from mixsd_lightning.sizes import Shape, shape_by_name


@pytest.fixture(scope="module")
def shape() -> Shape:
    """A model of the paper."""
    return shape_by_name("Qwen/Qwen3-1.7B")


def test_work_grows_with_the_facts_and_shrinks_with_the_devices(shape: Shape) -> None:
    small, large = (Estimate(shape, Facts(count)) for count in (1000, 50_000))
    one, eight = Device(), Device(8 * Device.teraflops, Device.utilisation, 8 * Device.bandwidth)
    for slow, fast in zip(large.seconds(one, 256), large.seconds(eight, 256), strict=True):
        assert slow == pytest.approx(8 * fast)
    for many, few in zip(large.seconds(one, 256), small.seconds(one, 256), strict=True):
        assert many == pytest.approx(50 * few)


def test_few_facts_in_flight_wait_for_the_weights(shape: Shape) -> None:
    facts = Facts(1000, attempts=2)
    alone, _ = Estimate(shape, facts).seconds(Device(), rows=1)
    assert alone == pytest.approx(1000 * 2 * facts.target * 2 * shape.num_parameters / (Device.bandwidth * 1e9))
    many, _ = Estimate(shape, facts).seconds(Device(), rows=1000)
    assert many == pytest.approx(Estimate(shape, facts).writing_flops / (Device.teraflops * 1e12 * Device.utilisation))


def test_operations_are_two_and_eight_for_each_weight_and_token(shape: Shape) -> None:
    estimate = Estimate(shape, Facts(1000))
    assert estimate.writing_flops == pytest.approx(2 * shape.num_parameters * estimate.facts.written_tokens, rel=0.1)
    # A forward pass, one more for the activations, and a backward pass of two.
    assert estimate.training_flops == pytest.approx(8 * shape.num_linear * estimate.facts.trained_tokens, rel=0.1)


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
