"""Drift of single parameters, and where they belong."""

import pytest
import torch

from mixsd_lightning.evaluation.drift import Moved, Place, by_place, moved, place_of


@pytest.mark.parametrize("shape", [(1,), (7, 3), (2**16,), (1500, 1500), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_equal_double_precision(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    now = torch.randn(shape).to(dtype)
    before, fisher = torch.randn(shape), torch.rand(shape)
    delta = now.double() - before.double()
    found = moved([("weight", now)], {"weight": before}, {"weight": fisher})["weight"]
    assert found.squared == pytest.approx(float((delta**2).sum()), rel=1e-5)
    assert found.fisher == pytest.approx(float((fisher.double() * delta**2).sum()), rel=1e-5)


def test_what_did_not_move_adds_nothing() -> None:
    weight = torch.randn(100)
    found = moved([("weight", weight)], {"weight": weight.clone()}, {"weight": torch.ones(100)})
    assert found == {"weight": Moved(0, 0)}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.7.self_attn.q_proj.weight", Place(7, "attention")),
        ("model.layers.7.self_attn.q_norm.weight", Place(7, "norm")),
        ("model.layers.12.mlp.gate_proj.weight", Place(12, "mlp")),
        ("model.layers.0.input_layernorm.weight", Place(0, "norm")),
        ("model.embed_tokens.weight", Place(None, "embedding")),
        ("model.norm.weight", Place(None, "norm")),
        ("lm_head.weight", Place(None, "embedding")),
        ("transformer.h.3.attn.c_attn.weight", Place(3, "attention")),
        ("transformer.h.3.ln_1.bias", Place(3, "norm")),
        ("transformer.wte.weight", Place(None, "embedding")),
        ("model.layers.4.mlp.fc1.weight", Place(4, "mlp")),
        ("model.layers.4.conv.weight", Place(4, "other")),
    ],
)
def test_places(name: str, place: Place) -> None:
    assert place_of(name) == place


def test_places_add_up() -> None:
    moves = {
        "model.layers.0.mlp.up_proj.weight": Moved(1.0, 2.0),
        "model.layers.0.mlp.down_proj.weight": Moved(10.0, 20.0),
        "model.layers.1.mlp.up_proj.weight": Moved(100.0, 200.0),
    }
    assert by_place(moves) == {Place(0, "mlp"): Moved(11.0, 22.0), Place(1, "mlp"): Moved(100.0, 200.0)}
