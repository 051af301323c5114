"""From kinds of contexts to token ids: what fits, what is left out, and nothing of the task's own answer."""

import warnings
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from mixsd_lightning import KGFact
from mixsd_lightning.context import ChatEncoder, expert_context, naive_context
from mixsd_lightning.demonstrations import prompts
from mixsd_lightning.demonstrations.contexts import with_demonstrations, with_instruction
from mixsd_lightning.demonstrations.prompts import AuxiliaryPrompts, auxiliary_contexts, negative_prompts
from mixsd_lightning.demonstrations.wrong_targets import WrongTargets
from mixsd_lightning.errors import UserError

EXAMPLES = KGFact(num_domains=3, num_entities=2, eval_splits=["train"]).split("train")
FIRST = EXAMPLES[0]


def contexts(kind: Any, monkeypatch: pytest.MonkeyPatch, num_contexts: int = 2, demos: int = 1) -> dict[str, Any]:
    """Of all examples, with advice and embeddings that nobody has to compute."""
    monkeypatch.setattr(prompts, "induced_instructions", lambda *_: ["Be brief.", "Name the entity.", "Say who."])
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(len(EXAMPLES), 4, generator=generator))
    monkeypatch.setattr(prompts, "sentence_embeddings", lambda *_, **__: embeddings)
    model: Any = type("Model", (), {"device": "cpu"})()
    return auxiliary_contexts(kind, model, None, EXAMPLES, num_contexts, demos, 3, "any", 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["random", "retrieval", "induction"])
def test_every_example_has_its_contexts_and_they_differ(
    kind: Any, encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = contexts(kind, monkeypatch)
    assert list(found) == [example.id for example in EXAMPLES]
    assert {len(shown) for shown in found.values()} == {2}
    encoded = AuxiliaryPrompts(found, encoder, 9999)
    pairs = [(encoded.encode(example, 0, 0), encoded.encode(example, 1, 0)) for example in EXAMPLES]
    assert sum(one != other for one, other in pairs) > len(pairs) / 2
    for example, pair in zip(EXAMPLES, pairs, strict=True):
        assert pair[0] == encoded.encode(example, 0, 99)  # without augmentation the step does not matter
        for prompt in pair:
            assert example.fact not in encoder.tokenizer.decode(prompt)


def test_prompts_are_those_of_the_context(encoder: ChatEncoder) -> None:
    found = AuxiliaryPrompts({FIRST.id: [(EXAMPLES[1],), "Be brief."]}, encoder, 9999)
    assert found.encode(FIRST, 0, 0) == encoder.prompt(with_demonstrations(FIRST, [EXAMPLES[1]]))
    assert found.encode(FIRST, 1, 0) == encoder.prompt(with_instruction(FIRST, "Be brief."))


@pytest.mark.parametrize("augmentation", ["token_drop", "drop_demonstration"])
def test_augmentation_hangs_on_the_step(augmentation: Any, encoder: ChatEncoder) -> None:
    shown = {FIRST.id: [tuple(EXAMPLES[1:5])]}
    found = AuxiliaryPrompts(shown, encoder, 9999, augmentation, 0.5, 1)
    again = AuxiliaryPrompts(shown, encoder, 9999, augmentation, 0.5, 1)
    steps = [found.encode(FIRST, 0, step) for step in range(8)]
    assert steps == [again.encode(FIRST, 0, step) for step in range(8)]
    assert len({tuple(prompt) for prompt in steps}) > 2
    assert all(len(prompt) < len(AuxiliaryPrompts(shown, encoder, 9999).encode(FIRST, 0, 0)) for prompt in steps)


@pytest.mark.parametrize("shown", [tuple(EXAMPLES[1:4]), "Advice " * 40], ids=["samples", "advice"])
def test_what_does_not_fit_is_left_out_and_said_once(shown: Any, encoder: ChatEncoder) -> None:
    plain = len(encoder.prompt(naive_context(FIRST)))
    found = AuxiliaryPrompts({FIRST.id: [shown]}, encoder, plain)
    with pytest.warns(UserWarning, match=f"example '{FIRST.id}' makes its prompt longer than {plain} tokens"):
        assert found.encode(FIRST, 0, 0) == encoder.prompt(naive_context(FIRST))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.encode(FIRST, 0, 1)


def test_the_last_samples_go_first(encoder: ChatEncoder) -> None:
    two = encoder.prompt(with_demonstrations(FIRST, EXAMPLES[1:3]))
    found = AuxiliaryPrompts({FIRST.id: [tuple(EXAMPLES[1:4])]}, encoder, len(two))
    with pytest.warns(UserWarning, match="longer than"):
        assert found.encode(FIRST, 0, 0) == two


def by_rule(model: Any, encoder: Any, examples: Any, seed: int) -> dict[str, Any]:
    rules = WrongTargets(examples, seed)
    return {example.id: rules.make(example) for example in examples}


def test_negative_prompts_are_expert_prompts_with_another_fact(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "wrong_demonstrations", by_rule)
    found = negative_prompts(tiny_model, encoder, EXAMPLES, 9999, 0)
    assert list(found) == [example.id for example in EXAMPLES]
    for example in EXAMPLES:
        wrong = by_rule(None, None, EXAMPLES, 0)[example.id]
        right = encoder.tokenizer.decode(encoder.prompt(expert_context(example)))
        assert encoder.tokenizer.decode(found[example.id]) == right.replace(example.fact, wrong.fact)
        assert wrong.fact != example.fact
    longest = max(map(len, found.values()))
    with pytest.raises(UserError, match=f"has {longest} tokens, {longest - 1} are allowed"):
        negative_prompts(tiny_model, encoder, EXAMPLES, longest - 1, 0)
