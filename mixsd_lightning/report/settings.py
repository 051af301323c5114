"""Which runs repeat one another but for their seeds, and what to call them: the fewest words that tell them apart."""

import inspect
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mixsd_lightning
from mixsd_lightning.errors import printable
from mixsd_lightning.modules import KnowledgeModule
from mixsd_lightning.report.collect import Line, Run

METHOD, RATE, TRAIN_SPLIT = "method", "model.mixing_rate", "data.train_split"
BASE, NULL = "base model", "null"

_METHODS = ("SFT", "OPSD", "UniSD", "MixSD")
_RATES = (RATE, "model.learning_rate")
_FIRST = (RATE, "model.protect_answer", "model.learning_rate")
_SEED = re.compile(r"(^|[._])seed(_everything)?$")
# Where things lie, and what watches or shows a run without changing it.
_IGNORED = {"data_dir", "cache_dir", "default_root_dir", "save_dir", "dirpath", "ckpt_path", "weights_only"}
_IGNORED |= {"logger", "errors", "completions", "collapse", "resources", "dashboard", "metrics_file", "class_path"}
_IGNORED |= {"checkpoint", "resume"}
_IGNORED |= {"data.eval_splits", "data.eval_batch_size", "trainer.accelerator", "trainer.barebones", "trainer.profiler"}
_IGNORED |= {"trainer.check_val_every_n_epoch", "trainer.val_check_interval", "trainer.num_sanity_val_steps"}
_IGNORED |= {"trainer.log_every_n_steps", "trainer.model_registry", "trainer.detect_anomaly", "trainer.fast_dev_run"}
_WATCHING = re.compile(r"trainer\.enable_\w+$")
_WATCHERS = re.compile(r"(ProgressBar|ModelCheckpoint|ModelSummary|Monitor|Timer|DeviceStats\w*)$")
# Settings of the data that say how it is trained on; all others say what is taught.
_DATA_OF_METHOD = {"data.batch_size", "data.expert_context", "data.max_eval_examples", "data.on_bad_row"}
_LONGEST = 48


@dataclass
class Setting:
    """Runs that differ in nothing but their seeds, or the base model that they began with."""

    label: str
    method: str
    values: Mapping[str, str]
    """Every setting as text, under the name it has on the command line."""
    runs: Sequence[Run]
    """One for each choice of seeds."""
    lines: Sequence[Line]
    """What is compared: the last validation of each run; of the base model, what the runs measured before training."""
    differing: Sequence[str] = ()
    """Names of settings that do not have this value in all that it is compared with."""
    is_base: bool = False

    @property
    def rate(self) -> float | None:
        """The mixing rate, of methods that have one."""
        try:
            return float(self.values[RATE])
        except (KeyError, ValueError):
            return None

    @property
    def family(self) -> tuple[tuple[str, str], ...]:
        """Everything but the mixing rate."""
        return tuple(sorted((name, value) for name, value in self.values.items() if name != RATE))


@dataclass
class Corpus:
    """Settings that can be compared, because the same was taught."""

    name: str
    train_split: str
    settings: list[Setting] = field(default_factory=list)
    bases: list[Setting] = field(default_factory=list)

    @property
    def rows(self) -> list[Setting]:
        """Base models first."""
        return [*self.bases, *self.settings]


def group(runs: Sequence[Run]) -> tuple[list[Corpus], list[str]]:
    """Runs by corpus and setting, and notes on what was left out."""
    notes: list[str] = []
    by_corpus: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        by_corpus[_corpus_key(run)].append(run)
    names = _corpus_names(by_corpus.keys())
    corpora = []
    for key, members in sorted(by_corpus.items(), key=lambda item: names[item[0]]):
        by_setting: dict[tuple[tuple[str, str], ...], list[Run]] = defaultdict(list)
        for run in members:
            # What is null is what it would be if it were not there, and older configs have fewer keys.
            by_setting[tuple(item for item in sorted(all_settings(run).items()) if item[1] != NULL)].append(run)
        settings = []
        for repeats in by_setting.values():
            kept, found = _one_run_per_seed(repeats)
            notes += found
            trained = [run for run in kept if run.last["step"] > 0]
            if trained:
                named = all_settings(trained[-1])
                settings.append(Setting("", named[METHOD], named, trained, [run.last for run in trained]))
            elif kept:
                notes.append(f"{kept[0].name} has not been validated after training yet; it gives the base model only.")
        split = next((all_settings(run).get(TRAIN_SPLIT) for run in members), None) or "train"
        corpora.append(Corpus(names[key], split, _labelled(settings), _base_models(members)))
    return corpora, notes


def all_settings(run: Run) -> dict[str, str]:
    """Every setting that can change a result, but for seeds, as text by its name on the command line.

    What an older config does not name has its default.
    """
    if run.config is None:
        return {METHOD: run.name}
    config = _normal(run.config)
    for section, owner in (("model", ""), ("data", ""), ("drift", "FisherDrift"), ("retention", "Retention")):
        given = config.get(section)
        if isinstance(given, dict):
            own = given.get("init_args", given)
            config[section] = {**_defaults(owner or _class_path(run, section)), **(own if isinstance(own, dict) else {})}
    method = printable(_class_path(run, "model").rpartition(".")[2])
    flat = _flat(config)
    return {METHOD: method or run.name, **{name: show(flat[name]) for name in sorted(flat)}}


def _class_path(run: Run, section: str) -> str:
    """Of the method or the corpus; empty where the config names none."""
    given = (run.config or {}).get(section)
    return str(given.get("class_path", "")) if isinstance(given, Mapping) else ""


def seeds(run: Run) -> dict[str, str]:
    """The seeds of a run by their names on the command line."""
    flat = _flat(run.config or {}, keep_seeds=True)
    found = {name.replace(".init_args", ""): show(value) for name, value in flat.items() if _SEED.search(name)}
    return dict(sorted(found.items()))


def show(value: Any) -> str:
    """A setting as text; numbers that are equal look equal."""
    if isinstance(value, str):
        if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):  # YAML reads 1e-4 as text
            return f"{float(value):.12g}"
        return printable(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"{value:.12g}"
    return printable(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str))


def _normal(config: Any, path: str = "") -> Any:
    """A config without seeds, without what only watches, and with folders by their last name."""
    if isinstance(config, Mapping):
        kept = {}
        for name, value in config.items():
            where = f"{path}.{name}" if path else str(name)
            where = where.replace(".init_args", "")
            ignored = {str(name), where} & (_IGNORED - {"class_path"}) or _WATCHING.search(where) or _SEED.search(where)
            if not ignored:
                kept[str(name)] = _normal(value, where)
        return kept
    if isinstance(config, list | tuple):
        shown = [_normal(value, path) for value in config]
        if path == "trainer.callbacks":
            shown = [one for one in shown if not (isinstance(one, dict) and _WATCHERS.search(str(one.get("class_path"))))]
            return shown or None
        return shown
    if isinstance(config, str) and re.match(r"[/~.\\]|[A-Za-z]:[/\\]", config) and re.search(r"[/\\]", config):
        return re.split(r"[/\\]", config.rstrip("/\\"))[-1]
    return config


def _defaults(class_path: str) -> dict[str, Any]:
    """Defaults of a class of this package, without those that are ignored. Nothing else is imported."""
    found: Any = getattr(mixsd_lightning, class_path.rpartition(".")[2], None)
    if (
        not inspect.isclass(found)
        or (class_path.rpartition(".")[0] or "mixsd_lightning").partition(".")[0] != "mixsd_lightning"
    ):
        return {}
    defaults: dict[str, Any] = {}
    section = "data" if issubclass(found, mixsd_lightning.CorpusDataModule) else "model"
    for owner in found.__mro__:
        if "__init__" in vars(owner) and owner.__module__.startswith("mixsd_lightning."):
            for name, parameter in inspect.signature(owner).parameters.items():
                if parameter.default is not inspect.Parameter.empty:
                    defaults.setdefault(name, parameter.default)
    normal: dict[str, Any] = _normal(defaults, section)
    return normal


def _flat(config: Mapping[str, Any], path: str = "", keep_seeds: bool = False) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        where = f"{path}.{name}" if path else str(name)
        if str(name) in _IGNORED and not keep_seeds:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, where, keep_seeds)
        else:
            flat[where] = value
    return flat


def _corpus_key(run: Run) -> tuple[str, ...]:
    """What is taught: name, and every setting of the data that decides which questions there are."""
    name = _class_path(run, "data").rpartition(".")[2]
    if not name:
        return ("",)
    values = all_settings(run)
    taught = [key for key in sorted(values) if key.startswith("data.") and key not in _DATA_OF_METHOD and values[key] != NULL]
    return (printable(name), *(f"{key.removeprefix('data.')}={values[key]}" for key in taught))


def _corpus_names(keys: Collection[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Names of corpora: of the class or of its preset or file, and what differs between those that share it."""
    names = {}
    for key in keys:
        values = dict(pair.split("=", 1) for pair in key[1:])
        name = key[0] or "corpus not known"
        detail = next((values[known] for known in ("preset", "file") if known in values), "")
        if detail:
            name = detail if detail.startswith(name) else f"{name} ({Path(detail).name})"
        relatives = [other for other in keys if other[0] == key[0] and other != key]
        differing = sorted({pair for other in relatives for pair in set(key[1:]) - set(other[1:])})
        differing = [pair for pair in differing if pair.partition("=")[0] not in ("preset", "file")]
        names[key] = name + "".join(f", {pair}" for pair in differing)
    return names


def _one_run_per_seed(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Of runs with the same seeds, which tell nothing new, the longest, and of those the last; and notes."""
    by_seeds: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        by_seeds[tuple(seeds(run).items())].append(run)
    kept, notes = [], []
    for same in by_seeds.values():
        best = max(same, key=lambda run: (run.last["step"], len(run.lines), _time(run), run.name))
        kept.append(best)
        notes += [f"{run.name} has settings and seeds of {best.name}; it was left out." for run in same if run is not best]
    if len({run.last["step"] for run in kept}) > 1:
        told = ", ".join(f"{run.name} at {run.last['step']:g}" for run in kept)
        notes.append(f"Runs of one setting end at different steps: {told}. Their last validations are compared all the same.")
    return kept, notes


def _time(run: Run) -> float:
    return (run.folder / "metrics.jsonl").stat().st_mtime


def _labelled(settings: list[Setting]) -> list[Setting]:
    """The settings in order, with labels: the method, its rates if they differ, and what is unusual about it."""
    peers = {id(setting): dict(_peers(setting, settings)) for setting in settings}
    for setting in settings:
        own = peers[id(setting)]
        setting.differing = sorted((name for name in own if len(set(own[name])) > 1), key=lambda name: (_rank(name), name))
    settings.sort(
        key=lambda one: (_method_rank(one.method), one.method, [_sortable(one.values.get(n, NULL)) for n in one.differing])
    )
    taken: set[str] = set()
    for setting in settings:
        values = {name: setting.values.get(name, NULL) for name in setting.differing}
        named = [name for name in values if name in _RATES or values[name] != _usual(peers[id(setting)][name])]
        label = plain = ", ".join([setting.method, *(_part(name, values[name], settings) for name in named)])
        for number in range(2, len(settings) + 2):
            if label not in taken:
                break
            label = f"{plain} ({number})"
        taken.add(label)
        setting.label = label
    return settings


def _peers(setting: Setting, settings: Sequence[Setting]) -> Iterator[tuple[str, list[str]]]:
    """Names of settings, and the values that can be compared: of the same method if it is the method's, of all if all have it."""
    shared = {f"model.{name}" for name in inspect.signature(KnowledgeModule).parameters}
    same = [other for other in settings if other.method == setting.method]
    for name in dict.fromkeys(name for other in settings for name in other.values):
        if name == METHOD:
            continue
        peers = same if name.startswith("model.") and name not in shared else settings
        yield name, [other.values.get(name, NULL) for other in peers]


def _usual(values: Iterable[str]) -> str:
    """The most common value, and of several the first: of numbers the lowest, of a choice that it is not made."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value != NULL, _sortable(value)))


def _part(name: str, value: str, settings: Sequence[Setting]) -> str:
    if name == RATE:
        return f"λ {value}"
    short = name.rpartition(".")[2]
    if sum(other.rpartition(".")[2] == short for other in {key for setting in settings for key in setting.values}) > 1:
        short = name
    if value in ("true", "false"):
        return short if value == "true" else f"no {short}"
    words = "learning rate" if short == "learning_rate" else short
    return f"{words} {value if len(value) <= _LONGEST else value[: _LONGEST - 1] + '…'}"


def _rank(name: str) -> int:
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def _method_rank(method: str) -> int:
    return _METHODS.index(method) if method in _METHODS else len(_METHODS)


def _sortable(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value


def _base_models(runs: Sequence[Run]) -> list[Setting]:
    """What runs measured before training, by base model.

    The base model gives the same answers in every run; only another seed of the corpus asks it something else.
    """
    by_model: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.lines[0]["step"] == 0:
            values = all_settings(run)
            by_model[values.get("model.model_name_or_path", "")][seeds(run).get("data.seed", "")].append(run)
    found = []
    for model, by_seed in sorted(by_model.items()):
        lines = []
        for same in by_seed.values():
            merged: dict[str, float] = {}
            for run in same:
                for tag, value in run.lines[0].items():
                    # What is left depends on the run's targets.
                    if tag.startswith(("memorization/", "retention/", "drift/", "errors/")) and "/taught" not in tag:
                        merged.setdefault(tag, value)
            lines.append(merged)
        label = BASE if len(by_model) == 1 else f"{BASE} {model}"
        firsts = [same[0] for same in by_seed.values()]
        found.append(Setting(label, BASE, {"model.model_name_or_path": model} if model else {}, firsts, lines, is_base=True))
    return found
