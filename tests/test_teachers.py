"""Teachers: which weights they have, before and after steps of the student."""

import pytest
import torch
from transformers import PreTrainedModel

from mixsd_lightning.errors import UserError
from mixsd_lightning.models import add_lora, load_student
from mixsd_lightning.teachers import EMATeacher, FrozenTeacher, SharedTeacher

IDS = torch.tensor([[1, 2, 3, 4]])


def move(model: PreTrainedModel, seed: int = 0) -> None:
    """What an optimizer step does: every trained parameter changes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model.eval()(IDS).logits


def test_a_frozen_teacher_stays(tiny_model_path: str, tiny_model: PreTrainedModel) -> None:
    before = logits(tiny_model)
    teacher = FrozenTeacher(load_student(tiny_model_path))
    move(tiny_model)
    teacher.step(1)
    with teacher.model() as model:
        assert torch.equal(model(IDS).logits, before)
    assert teacher.state_dict() == {}


def test_with_lora_a_frozen_teacher_is_the_student_without_its_adapter(tiny_model: PreTrainedModel) -> None:
    before = logits(tiny_model)
    add_lora(tiny_model, 4, 8)
    move(tiny_model)
    changed = logits(tiny_model)
    with FrozenTeacher(tiny_model, has_adapter=True).model() as model:
        assert model is tiny_model
        assert torch.equal(model(IDS).logits, before)
    assert torch.equal(logits(tiny_model), changed)
    assert not torch.equal(changed, before)


def test_a_shared_teacher_is_the_student_as_it_is(tiny_model: PreTrainedModel) -> None:
    teacher = SharedTeacher(tiny_model)
    move(tiny_model)
    tiny_model.train()
    with teacher.model() as model:
        assert not model.training
        teacher_logits = model(IDS).logits
    assert tiny_model.training
    assert not teacher_logits.requires_grad
    assert torch.equal(teacher_logits, logits(tiny_model))


def test_one_step_of_the_moving_average_by_hand(tiny_model_path: str, tiny_model: PreTrainedModel) -> None:
    base = {name: parameter.clone() for name, parameter in tiny_model.named_parameters()}
    teacher = EMATeacher(load_student(tiny_model_path), tiny_model, decay=0.75, every_n_steps=1)
    move(tiny_model)
    teacher.step(1)
    with teacher.model() as model:
        for name, parameter in model.named_parameters():
            expected = 0.75 * base[name] + 0.25 * tiny_model.get_parameter(name)
            torch.testing.assert_close(parameter, expected)


@pytest.mark.parametrize(("decay", "follows"), [(1.0, False), (0.0, True)])
def test_its_ends_are_the_frozen_and_the_shared_teacher(
    tiny_model_path: str, tiny_model: PreTrainedModel, decay: float, follows: bool
) -> None:
    before = logits(tiny_model)
    teacher = EMATeacher(load_student(tiny_model_path), tiny_model, decay, every_n_steps=1)
    move(tiny_model)
    teacher.step(1)
    with teacher.model() as model:
        torch.testing.assert_close(model(IDS).logits, logits(tiny_model) if follows else before)


def test_it_moves_every_n_steps(tiny_model_path: str, tiny_model: PreTrainedModel) -> None:
    teacher = EMATeacher(load_student(tiny_model_path), tiny_model, decay=0.5, every_n_steps=3)
    move(tiny_model)
    moved = []
    for step in range(1, 7):
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        teacher.step(step)
        moved.append(any(not torch.equal(before[name], value) for name, value in teacher.state_dict().items()))
    assert moved == [False, False, True, False, False, True]


def test_with_lora_the_average_moves_by_the_adapters_change(tiny_model_path: str, tiny_model: PreTrainedModel) -> None:
    add_lora(tiny_model, 4, 8)
    teacher = EMATeacher(load_student(tiny_model_path), tiny_model, decay=0.9, every_n_steps=1)
    base = load_student(tiny_model_path)
    for seed in (0, 1):
        move(tiny_model, seed)
    teacher.step(1)
    name = "model.layers.0.self_attn.q_proj"
    change = tiny_model.get_submodule(name).get_delta_weight("default").detach()
    with teacher.model() as model:
        weight = model.get_parameter(f"{name}.weight")
        torch.testing.assert_close(weight, base.get_parameter(f"{name}.weight") + 0.1 * change)
        assert torch.equal(model.get_parameter("model.norm.weight"), base.get_parameter("model.norm.weight"))
    assert float(change.abs().max()) > 0
    assert "model.norm.weight" not in teacher.state_dict()


def test_the_average_is_float32_in_a_half_precision_model(tiny_model_path: str) -> None:
    student, model = load_student(tiny_model_path).bfloat16(), load_student(tiny_model_path).bfloat16()
    teacher = EMATeacher(model, student, decay=0.999, every_n_steps=1)
    start = teacher.state_dict()["model.norm.weight"].clone()
    with torch.no_grad():
        student.get_parameter("model.norm.weight").add_(1.0)
    for step in range(1, 11):  # each step is too small for bfloat16
        teacher.step(step)
    change = teacher.state_dict()["model.norm.weight"] - start
    torch.testing.assert_close(change, torch.full_like(change, 1 - 0.999**10), rtol=1e-3, atol=0)
    assert model.get_parameter("model.norm.weight").dtype == torch.bfloat16


def test_a_saved_average_comes_back(tiny_model_path: str, tiny_model: PreTrainedModel) -> None:
    teacher = EMATeacher(load_student(tiny_model_path), tiny_model, decay=0.5, every_n_steps=1)
    move(tiny_model)
    teacher.step(1)
    other = EMATeacher(load_student(tiny_model_path), tiny_model, decay=0.5, every_n_steps=1)
    other.load_state_dict({name: value.clone() for name, value in teacher.state_dict().items()})
    with teacher.model() as one, other.model() as two:
        assert torch.equal(one(IDS).logits, two(IDS).logits)


def test_an_average_of_other_weights_is_refused(tiny_model_path: str, tiny_model: PreTrainedModel) -> None:
    teacher = EMATeacher(load_student(tiny_model_path), tiny_model, decay=0.5, every_n_steps=1)
    with pytest.raises(UserError, match="no EMA teacher of these weights"):
        teacher.load_state_dict({})
