"""An exported student is loaded by transformers alone and says what the student says."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixsd_lightning import SFT
from mixsd_lightning.errors import UserError
from mixsd_lightning.export import export_student

IDS = torch.tensor([[1, 2, 3, 4]])


@torch.no_grad()
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_the_export_is_the_student(tiny_model_path: str, tmp_path: Path, lora_rank: int) -> None:
    module = SFT(tiny_model_path, lora_rank=lora_rank)
    module.configure_model()
    for parameter in module.student.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    names = [name for name, _ in module.student.named_parameters()]
    expected = module.student.eval()(IDS).logits
    export_student(module, tmp_path / "exported")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    torch.testing.assert_close(loaded(IDS).logits, expected)
    assert not any(".lora_" in name for name, _ in loaded.named_parameters())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert tokenizer.chat_template == module.tokenizer.chat_template
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    assert [name for name, _ in module.student.named_parameters()] == names
    assert torch.equal(module.student(IDS).logits, expected)


def test_nothing_is_overwritten(tiny_model_path: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="is there already"):
        export_student(SFT(tiny_model_path), tmp_path / "there")
