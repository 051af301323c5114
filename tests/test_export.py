"""An exported student is loaded by transformers alone and says what its checkpoint says."""

import copy
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
import yaml
from conftest import make_tiny_model
from safetensors import safe_open
from torch import Tensor, distributed
from torch.distributed import checkpoint as distributed_checkpoint
from trained_runs import moved, untrained, write_checkpoint, write_run
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mixsd_lightning import SFT
from mixsd_lightning.builtin_model import BUILTIN_MODEL
from mixsd_lightning.errors import UserError
from mixsd_lightning.export import export_student, main
from mixsd_lightning.models import load_student
from mixsd_lightning.sharding import shard

IDS = torch.tensor([[1, 2, 3, 4]])


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model.eval()(IDS).logits


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    return model


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_run_is_exported_as_its_checkpoint_is(tiny_model_path: str, tmp_path: Path, lora_rank: int) -> None:
    module = moved(tiny_model_path, lora_rank)
    write_run(tmp_path / "run", module)
    main([str(tmp_path / "run"), str(tmp_path / "out")])
    student = module.student
    if lora_rank:
        assert not torch.equal(logits(student), logits(load_student(tiny_model_path)))
        student = copy.deepcopy(student)
        for layer in student.modules():
            if hasattr(layer, "get_delta_weight"):
                layer.merge()
    exported = load(tmp_path / "out")
    assert torch.equal(logits(exported), logits(student))
    assert not any(".lora_" in name for name, _ in exported.named_parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "run/config.yaml").stat().st_mode}


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_exporting_from_python_leaves_the_student_as_it_is(tiny_model_path: str, tmp_path: Path, lora_rank: int) -> None:
    module = moved(tiny_model_path, lora_rank)
    names, before = [name for name, _ in module.student.named_parameters()], logits(module.student)
    export_student(module, tmp_path / "exported")
    torch.testing.assert_close(logits(load(tmp_path / "exported")), before, rtol=1e-4, atol=1e-4)  # merging rounds otherwise
    assert [name for name, _ in module.student.named_parameters()] == names
    assert torch.equal(logits(module.student), before)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert tokenizer.chat_template == module.tokenizer.chat_template
    assert "SFT" in (tmp_path / "exported/README.md").read_text()


def test_a_checkpoint_alone_is_enough(tiny_model_path: str, tmp_path: Path) -> None:
    module = moved(tiny_model_path, lora_rank=2)
    write_checkpoint(tmp_path / "alone.ckpt", module)
    main([str(tmp_path / "alone.ckpt"), str(tmp_path / "out")])
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(module.student), rtol=1e-4, atol=1e-4)


def test_the_newest_checkpoint_of_a_run_is_taken(tiny_model_path: str, tmp_path: Path) -> None:
    module = moved(tiny_model_path)
    newest = write_run(tmp_path / "run", module)
    write_checkpoint(newest.with_name("another.ckpt"), untrained(tiny_model_path))
    os.utime(newest.with_name("another.ckpt"), ns=(0, 0))
    main([str(tmp_path / "run"), str(tmp_path / "out")])
    assert torch.equal(logits(load(tmp_path / "out")), logits(module.student))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_on_request(tiny_model_path: str, tmp_path: Path, dtype: str) -> None:
    module = moved(tiny_model_path)
    write_run(tmp_path / "run", module)
    main([str(tmp_path / "run"), str(tmp_path / "out"), "--dtype", dtype])
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == dtype
    expected = {name: value.to(getattr(torch, dtype)) for name, value in module.student.state_dict().items()}
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert len(file.keys()) == len(expected) - 1  # the head is the embedding
        for name in file.keys():  # noqa: SIM118
            assert torch.equal(file.get_tensor(name), expected[name])


def test_an_adapter_can_be_kept(tiny_model_path: str, tmp_path: Path) -> None:
    module = moved(tiny_model_path, lora_rank=4)
    write_run(tmp_path / "run", module)
    main([str(tmp_path / "run"), str(tmp_path / "out"), "--keep_adapter"])
    assert not (tmp_path / "out/model.safetensors").exists()
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"] == tiny_model_path
    assert torch.equal(logits(load(tmp_path / "out")), logits(module.student))
    assert yaml.safe_load((tmp_path / "out/README.md").read_text().split("---")[1])["library_name"] == "peft"


def test_every_token_that_ends_an_answer_is_in_the_generation_config(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "base")
    generation = json.loads((tmp_path / "base/generation_config.json").read_text())
    end_of_turn = generation["eos_token_id"]
    (tmp_path / "base/generation_config.json").write_text(json.dumps({**generation, "eos_token_id": 7}))
    module = moved(str(tmp_path / "base"))
    export_student(module, tmp_path / "out")
    assert load(tmp_path / "out").generation_config.eos_token_id == sorted([7, end_of_turn])
    assert module.student.generation_config.eos_token_id == 7


def run_rank(rank: int, model_path: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    module = moved(model_path)
    shard(module.student, "cpu")
    # What Lightning's ModelParallelStrategy.save_checkpoint writes.
    state = {"state_dict": module.state_dict(), "optimizer_0": {"step": 3, "moments": torch.ones(5)}}
    distributed_checkpoint.save(state, checkpoint_id=f"{folder}/run/checkpoints/last.ckpt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture
def sharded_run(tmp_path: Path) -> Path:
    """A run of two ranks that share the weights."""
    make_tiny_model(tmp_path / "model")
    module = moved(str(tmp_path / "model"))
    path = write_run(tmp_path / "run", module)
    others = {key: value for key, value in torch.load(path, weights_only=True).items() if key != "state_dict"}
    path.unlink()
    path.mkdir()
    torch.multiprocessing.spawn(run_rank, (str(tmp_path / "model"), str(tmp_path)), nprocs=2)
    torch.save(others, path / "meta.pt")
    assert len(list(path.glob("*.distcp"))) == 2
    return tmp_path / "run"


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file")
def test_a_sharded_checkpoint_is_put_together(sharded_run: Path, tmp_path: Path) -> None:
    main([str(sharded_run), str(tmp_path / "out")])
    assert torch.equal(logits(load(tmp_path / "out")), logits(moved(str(tmp_path / "model")).student))
    main([str(sharded_run / "checkpoints/last.ckpt"), str(tmp_path / "same"), "--dtype", "bfloat16"])
    assert (tmp_path / "same/model.safetensors").exists()
    # An index that wants to run a program is not opened.
    for file in (".metadata", "meta.pt"):
        kept = (sharded_run / "checkpoints/last.ckpt" / file).read_bytes()
        (sharded_run / "checkpoints/last.ckpt" / file).write_bytes(pickle.dumps(Malice(str(tmp_path / "ran"))))
        with pytest.raises(UserError, match=r"more than weights|cannot be read"):
            main([str(sharded_run), str(tmp_path / "never")])
        (sharded_run / "checkpoints/last.ckpt" / file).write_bytes(kept)
    assert not (tmp_path / "ran").exists()


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("how", ["in a checkpoint", "a bare pickle"])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, how: str) -> None:
    malice, path = Malice(str(tmp_path / "ran")), tmp_path / "evil.ckpt"
    if how == "a bare pickle":
        path.write_bytes(pickle.dumps(malice))
    else:
        torch.save({"state_dict": {}, "global_step": 1, "hyper_parameters": malice}, path)
    with pytest.raises(UserError, match=r"more than weights|cannot be read"):
        main([str(path), str(tmp_path / "out")])
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
    if how == "in a checkpoint":  # which would have worked
        torch.load(path, weights_only=False)
        assert (tmp_path / "ran").exists()


def test_nothing_is_overwritten_and_nothing_half_written(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = moved(tiny_model_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        main([str(tmp_path / "no run is looked for"), str(tmp_path / "there")])
    with pytest.raises(UserError, match="is there already"):
        export_student(module, tmp_path / "there")
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "file"]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("mixsd_lightning.export.model_card", full)  # the last thing that is made
        with pytest.raises(UserError, match="No space left"):
            export_student(module, tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "there"]
    export_student(module, tmp_path / "empty")
    assert (tmp_path / "empty/model.safetensors").exists()
    export_student(module, tmp_path / "new/folder")
    assert (tmp_path / "new/folder/model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere", "out"], "There is no file or folder 'nowhere'"),
        (["runs", "out"], r"no checkpoint in checkpoints/; its runs are version_0"),
        (["run", "out", "--keep_adapter"], "--keep_adapter: this model was trained without"),
        (["run", "out", "--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["text", "out"], "'text' cannot be read as a checkpoint"),
        (["run"], "required: OUTPUT"),
    ],
    ids=str,
)
def test_mistakes_end_in_one_line(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", untrained(tiny_model_path))
    (tmp_path / "runs/version_0").mkdir(parents=True)
    (tmp_path / "text").write_text("not a checkpoint")
    with pytest.raises(UserError, match=complaint) as said:
        main(arguments)
    assert "\n" not in str(said.value)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_refused(tiny_model_path: str, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", untrained(tiny_model_path))
    checkpoint = torch.load(path, weights_only=True)
    (name, *_) = (name for name in checkpoint["state_dict"] if name.endswith("q_proj.weight"))
    checkpoint["state_dict"][name] = torch.zeros(3, 3)
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="does not fit its base model"):
        main([str(tmp_path / "run"), str(tmp_path / "out")])
    del checkpoint["state_dict"][name]
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=r"has no .*q_proj\.weight"):
        main([str(tmp_path / "run"), str(tmp_path / "out")])


@pytest.mark.builtin_model
def test_the_built_in_model_with_its_tied_embeddings(tmp_path: Path, builtin_model: PreTrainedModel) -> None:
    module = SFT(BUILTIN_MODEL)
    module.configure_model()
    with torch.no_grad():
        module.student.get_input_embeddings().weight.add_(0.01)
    write_run(tmp_path / "run", module)
    main([str(tmp_path / "run"), str(tmp_path / "out")])
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    exported = load(tmp_path / "out")
    assert torch.equal(logits(exported), logits(module.student))
    assert not torch.equal(logits(exported), logits(builtin_model))
    front = yaml.safe_load((tmp_path / "out/README.md").read_text().split("---")[1])
    assert (front["base_model"], front["license"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
