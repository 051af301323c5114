"""What is computed once."""

from pathlib import Path

import pytest
import torch

from mixsd_lightning.disk_cache import cached_json, cached_tensors, digest


class Counter:
    """Makes a tensor and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, torch.Tensor]:
        self.calls += 1
        return {"x": torch.full((3,), float(self.calls))}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_second_call_reads_what_the_first_has_computed(tmp_path: Path) -> None:
    compute = Counter()
    first, second = (cached_tensors("kind", {"a": [1, 2]}, compute) for _ in range(2))
    assert compute.calls == 1
    assert torch.equal(first["x"], second["x"])
    assert len(files(tmp_path / "computed" / "kind")) == 1  # nothing half-written beside it


@pytest.mark.parametrize("other", [{"a": 2}, {"b": 1}, {"a": 1, "c": None}])
def test_something_else_is_computed_anew(other: dict[str, int]) -> None:
    compute = Counter()
    cached_tensors("kind", {"a": 1}, compute)
    assert cached_tensors("kind", other, compute)["x"][0] == 2


def test_another_version_computes_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Counter()
    cached_tensors("kind", {}, compute)
    monkeypatch.setattr("mixsd_lightning.__version__", "999")
    cached_tensors("kind", {}, compute)
    assert compute.calls == 2


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    compute = Counter()
    cached_tensors("kind", {}, compute)
    (file,) = files(tmp_path / "computed")
    file.write_bytes(file.read_bytes()[:20])
    assert cached_tensors("kind", {}, compute)["x"][0] == 2
    assert cached_tensors("kind", {}, compute)["x"][0] == 2


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "computed").write_text("not a folder")
    compute = Counter()
    with pytest.warns(UserWarning, match=r"Cannot keep .*MIXSD_CACHE_DIR"):
        assert cached_tensors("kind", {}, compute)["x"][0] == 1


def test_a_digest_depends_on_content_and_not_on_order() -> None:
    assert digest({"a": 1, "b": [1]}) == digest({"b": [1], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_json_is_computed_once_and_read_back_as_it_was(tmp_path: Path) -> None:
    made: list[dict[str, list[str]]] = []

    def compute() -> dict[str, list[str]]:
        made.append({"texts": ["ä \u2028 \ud800", ""]})  # a half of a surrogate pair, too
        return made[-1]

    first, second = (cached_json("texts", {"a": 1}, compute) for _ in range(2))
    assert len(made) == 1
    assert first == second == made[0]
    (file,) = files(tmp_path / "computed" / "texts")
    file.write_text('{"texts": [')
    assert cached_json("texts", {"a": 1}, compute) == made[0]
    assert len(made) == 2
