"""Tasks of EleutherAI's lm-evaluation-harness."""

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
from lightning.pytorch.utilities.seed import isolate_rng
from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.disk_cache import digest
from mixsd_lightning.errors import UserError, require
from mixsd_lightning.evaluation.suites.base import Score, Suite
from mixsd_lightning.models import inference
from mixsd_lightning.records import evenly_spaced

_METRICS = ("acc_norm", "acc", "exact_match", "pass@1", "f1")
"""Metrics from the one that is preferred as a task's score on."""
# Worked examples are drawn anew at each measurement, and must be the same ones.
_SHOTS_SEED = 1234


class LMEvaluationHarness(Suite):
    """Scores `lm_eval/<task>` of any tasks that lm-evaluation-harness knows, as it measures them (needs the extra `eval`).

    A task's score is the first of acc_norm, acc, exact_match, pass@1 and f1 that it has, or else its first metric; where it
    applies several filters, after the first. A group of tasks has the mean over all its samples. A metric that is not a mean
    over samples is logged without a share that is kept.
    """

    name = "lm_eval"

    def __init__(
        self,
        tasks: Sequence[str],
        limit: int = 0,
        num_fewshot: int | None = None,
        include_path: str | None = None,
        apply_chat_template: bool = False,
        batch_size: int = 16,
        every_n_validations: int = 0,
    ) -> None:
        """
        Args:
            tasks: Names of tasks, groups or tags.
            limit: Samples of each task, at even distances; 0 takes all.
            num_fewshot: Worked examples before each question; by default what the task says.
            include_path: Folder with tasks of your own (YAML files).
            apply_chat_template: Ask in a chat; by default tasks are plain text.
            batch_size: Requests that are run at once.
            every_n_validations: Measure at every n-th validation and at the last; 0 is at the last alone.

        Raises:
            UserError: if a number is out of range or there is no task.
        """
        super().__init__(every_n_validations)
        require("retention.suites: lm_eval.tasks", tasks, bool(tasks), "a list of at least one task")
        require("retention.suites: lm_eval.limit", limit, limit >= 0, "at least 1, or 0 for all samples")
        require("retention.suites: lm_eval.batch_size", batch_size, batch_size >= 1, "at least 1")
        self.tasks = tuple(tasks)
        self.limit = limit
        self.num_fewshot = num_fewshot
        self.include_path = include_path
        self.apply_chat_template = apply_chat_template
        self.batch_size = batch_size

    @override
    def setup(self) -> None:
        _ = self._tasks

    @property
    @override
    def settings(self) -> dict[str, Any]:
        asked = []
        for name, leaves in self._tasks.items():
            for task in leaves.values():
                docs = task.eval_docs
                chosen = evenly_spaced(range(len(docs)), self.limit)
                asked.append([name, repr(task.dump_config()), [repr(docs[index]) for index in chosen]])
        return {"lm_eval": version("lm_eval"), "asked": digest(asked), "apply_chat_template": self.apply_chat_template}

    @override
    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        tasks = self._tasks
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        # HFLM changes its tokenizer and puts its model into eval mode for good. Given a model, it takes its process for the
        # only one, so every rank measures everything. The harness's own entry point would seed all generators as well.
        with isolate_rng(), inference(model):
            with _errors_only(logging.getLogger("lm_eval")):  # it warns of what is meant here
                lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(encoder.tokenizer), batch_size=self.batch_size)
            scores = {}
            for name, leaves in tasks.items():
                for task in leaves.values():
                    task.set_fewshot_seed(_SHOTS_SEED)
                chosen = {leaf: evenly_spaced(range(len(task.eval_docs)), self.limit) for leaf, task in leaves.items()}
                results = evaluate(
                    lm=lm,
                    task_dict={"tasks": leaves},
                    samples=chosen if self.limit else None,
                    bootstrap_iters=0,
                    apply_chat_template=self.apply_chat_template,
                    fewshot_as_multiturn=self.apply_chat_template,
                )
                scores[f"{self.name}/{name}"] = _score(results)
        return scores

    @cached_property
    def _tasks(self) -> dict[str, dict[str, Any]]:
        """Tasks by their names, for each name that was asked for."""
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise UserError(
                "--retention.suites: LMEvaluationHarness needs lm-eval, which is not installed: "
                "pip install 'mixsd_lightning[eval]', or leave it out."
            ) from error
        with isolate_rng():  # some loaders draw
            manager = TaskManager(include_path=self.include_path)  # reads thousands of files, so only once
            return {name: self._load(manager, name) for name in self.tasks}

    def _load(self, manager: Any, name: str) -> dict[str, Any]:
        if name not in manager.all_tasks:
            raise UserError(
                f"--retention.suites: lm-evaluation-harness has no task '{name}'. `lm_eval ls tasks` lists all; for one of "
                "your own set include_path to its folder."
            )
        try:
            leaves: dict[str, Any] = manager.load(name)["tasks"]
        except Exception as error:  # whatever a missing network or a wrong file makes the loader raise; the cause is kept
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"--retention.suites: cannot load the task '{name}' of lm_eval: {reason} Mend that.") from error
        for task in leaves.values():
            if getattr(task, "UNSAFE_CODE", False):
                raise UserError(
                    f"--retention.suites: the task '{name}' of lm_eval runs code that the model writes, without a sandbox. "
                    "Use the suite humaneval instead."
                )
            fewshot = task.get_config("num_fewshot")
            # A task that says 0 has no worked examples to show.
            if fewshot is None or (self.num_fewshot is not None and fewshot != 0):
                task.set_config("num_fewshot", self.num_fewshot or 0)
        return leaves


def _score(results: Mapping[str, Any]) -> Score:
    """Score of all tasks of an evaluation, which belong together, in one."""
    parts = [_task_score(results, task) for task in results["samples"]]
    higher_is_better = parts[0].higher_is_better
    if all(part.has_kept_share for part in parts):
        return Score([value for part in parts for value in part.values], higher_is_better=higher_is_better)
    sizes = [len(samples) for samples in results["samples"].values()]
    return Score([part.value for part in parts], sizes, higher_is_better, has_kept_share=False)


def _task_score(results: Mapping[str, Any], task: str) -> Score:
    logged = results["samples"][task]
    first_filter = logged[0]["filter"]
    samples = [sample for sample in logged if sample["filter"] == first_filter]
    metrics = samples[0]["metrics"]
    metric = next((metric for metric in _METRICS if metric in metrics), metrics[0])
    higher_is_better = results["higher_is_better"][task].get(metric) is not False
    whole = float(results["results"][task][f"{metric},{first_filter}"])
    values = [sample.get(metric) for sample in samples]
    if all(isinstance(value, int | float | np.number | np.bool_) for value in values) and math.isclose(np.mean(values), whole):
        return Score(list(map(float, values)), higher_is_better=higher_is_better)
    return Score([whole], higher_is_better=higher_is_better, has_kept_share=False)


@contextmanager
def _errors_only(logger: logging.Logger) -> Iterator[None]:
    """Have a logger say nothing but errors for a while."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
