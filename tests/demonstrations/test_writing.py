"""The base model as a writer."""

import pytest
from solved import sentence
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder, Message
from mixsd_lightning.decoding.generation import Sampling, roll_out
from mixsd_lightning.demonstrations.writing import Writing, write, writer_settings
from mixsd_lightning.models import load_student, stop_token_ids

REQUESTS = ["Say something.", "x", "A longer request, to which there is more to say."]
KEYS = ["a", "b", "c"]


def written(model: PreTrainedModel, encoder: ChatEncoder, requests=REQUESTS, keys=KEYS, **options) -> list[Writing]:
    settings = {"temperature": 0.7, "max_new_tokens": 12, "batch_size": 8} | options
    return write(model, encoder, requests, keys, "Writing", **settings)


def test_requests_go_through_the_chat_template(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    rollouts = roll_out(
        tiny_model,
        [encoder.prompt([Message("user", request)]) for request in REQUESTS],
        KEYS,
        Sampling(0.7),
        num_rollouts=1,
        max_new_tokens=12,
        stop_ids=stop_token_ids(tiny_model, encoder.end_of_turn_id),
    )
    expected = [Writing(encoder.decode(c.token_ids), c.finish_reason == "stop") for (c,) in rollouts]
    assert written(tiny_model, encoder) == expected


def test_an_answer_hangs_on_its_own_request_and_key(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    texts = written(tiny_model, encoder)
    assert written(tiny_model, encoder, batch_size=1) == texts
    assert written(tiny_model, encoder, REQUESTS[::-1], KEYS[::-1]) == texts[::-1]
    assert written(tiny_model, encoder, keys=["d", "e", "f"]) != texts


def test_whether_it_ended_by_itself(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    # A random model over 259 tokens ends a long text sooner or later, a text of one token hardly ever.
    long = written(tiny_model, encoder, temperature=3.0, max_new_tokens=3000, requests=REQUESTS[:1], keys=KEYS[:1])
    assert long[0].is_finished
    assert not any(writing.is_finished for writing in written(tiny_model, encoder, max_new_tokens=1))


def test_a_request_without_room_in_the_window_is_not_answered(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    requests = ["x" * 9000, "x"]
    first, second = written(tiny_model, encoder, requests, KEYS[:2])
    assert first == Writing("", False)
    assert second == written(tiny_model, encoder, requests[1:], KEYS[1:2])[0]
    room = tiny_model.config.max_position_embeddings - len(encoder.prompt([Message("user", "x")]))
    tiny_model.config.max_position_embeddings -= room - 12  # exactly enough
    assert written(tiny_model, encoder, requests[1:], KEYS[1:2])[0] == second
    tiny_model.config.max_position_embeddings -= 1
    assert written(tiny_model, encoder, requests[1:], KEYS[1:2])[0] == Writing("", False)


def test_settings_tell_models_and_examples_apart(
    tiny_model: PreTrainedModel, tiny_model_path: str, encoder: ChatEncoder
) -> None:
    examples = [sentence(0), sentence(1)]
    settings = writer_settings(tiny_model, encoder, examples)
    assert writer_settings(load_student(tiny_model_path), encoder, list(examples)) == settings
    assert writer_settings(tiny_model, encoder, examples[:1]) != settings
    tiny_model.lm_head.weight.data[0, 0] += 1
    assert writer_settings(tiny_model, encoder, examples) != settings


@pytest.mark.parametrize("requests", [[], ["x"]])
def test_any_number_of_requests(requests: list[str], tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    assert len(written(tiny_model, encoder, requests, KEYS[: len(requests)])) == len(requests)
