"""Which mechanisms of UniSD change what the student learns, and by how much: the gradient of one real batch with each of them
against that of plain OPSD.

    python scripts/bench/unisd_gradients.py                              # KGFact; a few minutes
    python scripts/bench/unisd_gradients.py --corpus ScienceQA --data_dir DIR --max_examples 64

SmolLM2-135M in float32. The student has made 10 steps of OPSD, so it is no longer the base model; then every mechanism gets the
same prompts and the same rollouts. `published` are the values that the published experiments run with (arXiv 2605.06597,
`unisd_star`), `ours` the defaults here. Change is the length of what a mechanism adds to the gradient, as a share of the gradient.
The table is Markdown.
"""

import argparse
import copy
import tempfile
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from mixsd_lightning import OPSD, CorpusDataModule, KGFact, KnowledgeModule, ScienceQA, UniSD
from mixsd_lightning.models import load_student
from mixsd_lightning.teachers import EMATeacher

NUM_STEPS = 10
OFF: dict[str, Any] = {"agreement": "none", "contrastive_weight": 0.0, "feature_weight": 0.0, "teacher": "frozen"}
COMMON: dict[str, Any] = {"max_new_tokens": 24, "nll_every_n_steps": 0, "temperature": 0.0, "warmup_steps": 0}
PUBLISHED: dict[str, dict[str, Any]] = {
    "token agreement, random": {"agreement": "token", "agreement_strength": 0.001},
    "token agreement, retrieval": {"agreement": "token", "agreement_strength": 0.001, "auxiliary_contexts": "retrieval"},
    "token agreement, induction": {"agreement": "token", "agreement_strength": 0.001, "auxiliary_contexts": "induction"},
    "sequence agreement, random": {"agreement": "sequence", "agreement_strength": 0.01},
    "hinge": {"contrastive_weight": 0.01, "contrastive_margin": 0.1},
    "features": {"feature_weight": 0.01},
    "clipped divergence": {"max_divergence_per_token": 10.0},
    "EMA teacher": {"teacher": "ema", "ema_decay": 0.98, "ema_every_n_steps": 10},
}
PUBLISHED["UniSD*"] = {
    "agreement": "token",
    "agreement_strength": 0.001,
    "auxiliary_contexts": "retrieval",
    **PUBLISHED["hinge"],
    **PUBLISHED["features"],
    **PUBLISHED["EMA teacher"],
}
OURS: dict[str, dict[str, Any]] = {
    "token agreement, random": {"agreement": "token"},
    "token agreement, retrieval": {"agreement": "token", "auxiliary_contexts": "retrieval"},
    "token agreement, induction": {"agreement": "token", "auxiliary_contexts": "induction"},
    "sequence agreement, random": {"agreement": "sequence"},
    "hinge": {"contrastive_weight": None},
    "features": {"feature_weight": None},
    "clipped divergence": {"max_divergence_quantile": 0.95},
    "EMA teacher": {"teacher": "ema"},
    "UniSD*": {"agreement": None, "contrastive_weight": None, "feature_weight": None, "teacher": "ema"},
}
"""None is the class's own default."""


class Averages(Callback):
    """What EMA teachers of several settings would have become along a run."""

    def __init__(self, settings: list[dict[str, Any]]) -> None:
        self._settings = settings
        self.teachers: list[EMATeacher] = []

    def on_fit_start(self, trainer: Trainer, method: KnowledgeModule) -> None:  # type: ignore[override]
        for chosen in self._settings:
            base = load_student(method.model_name_or_path)
            decay, period = chosen.get("ema_decay", 0.99), chosen.get("ema_every_n_steps", 1)
            self.teachers.append(EMATeacher(base, method.student, decay, period))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        for teacher in self.teachers:
            teacher.step(trainer.global_step)


class OneGradient(Callback):
    """The gradient of the first step, with the teacher that is given."""

    def __init__(self, average: dict[str, Tensor] | None) -> None:
        self._average = average

    def on_train_start(self, trainer: Trainer, method: OPSD) -> None:  # type: ignore[override]
        if self._average is not None and method.teacher_kind == "ema":
            assert method.teacher is not None
            method.teacher.load_state_dict(self._average)

    def on_before_optimizer_step(self, trainer: Trainer, method: OPSD, optimizer: Any) -> None:  # type: ignore[override]
        self.vector = torch.cat([p.grad.flatten() for p in method.student.parameters() if p.grad is not None])


def trainer(num_steps: int, *callbacks: Callback) -> Trainer:
    """A trainer that says nothing and keeps nothing."""
    return Trainer(
        default_root_dir=tempfile.gettempdir(),
        accelerator="cpu",
        max_steps=num_steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


def gradient(corpus: CorpusDataModule, student: Any, method: OPSD, average: dict[str, Tensor] | None = None) -> Tensor:
    """Gradient of a copy of a student on the corpus's first batch."""
    method.student = copy.deepcopy(student)
    method.completed_steps = NUM_STEPS
    recorder = OneGradient(average)
    trainer(1, recorder).fit(method, corpus)
    return recorder.vector


def main(corpus: CorpusDataModule) -> None:
    """The table."""
    torch.manual_seed(0)
    averages = Averages([PUBLISHED["EMA teacher"], {}])
    first = OPSD(**COMMON)
    trainer(NUM_STEPS, averages).fit(first, corpus)
    states = [teacher.state_dict() for teacher in averages.teachers]
    plain = gradient(corpus, first.student, OPSD(**COMMON))
    print(f"{type(corpus).__name__}, {corpus.batch_size} prompts, after {NUM_STEPS} steps of OPSD\n")
    print("| mechanism | published: cosine | length | change | ours: cosine | length | change |")
    print("|---|---|---|---|---|---|---|")
    for name in PUBLISHED:
        cells = []
        for chosen, average in zip((PUBLISHED[name], OURS[name]), states, strict=True):
            options = {**{key: value for key, value in OFF.items() if key not in chosen}, **chosen}
            options = {key: value for key, value in options.items() if value is not None}
            with isolate_rng():
                found = gradient(corpus, first.student, UniSD(**COMMON, **options), average)
            cosine = float((found.double() @ plain.double()) / (found.double().norm() * plain.double().norm()))
            ratio = float(found.double().norm() / plain.double().norm())
            change = float((found - plain).double().norm() / plain.double().norm())
            cells += [f"{cosine:.4f}", f"{ratio:.3f}", f"{100 * change:.1f} %"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", choices=["KGFact", "ScienceQA"], default="KGFact")
    parser.add_argument("--data_dir")
    parser.add_argument("--max_examples", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=8)
    arguments = parser.parse_args()
    main(
        KGFact(batch_size=arguments.batch_size)
        if arguments.corpus == "KGFact"
        else ScienceQA(
            arguments.data_dir, arguments.max_examples, batch_size=arguments.batch_size, eval_splits=["train"], reasoning=False
        )
    )
