"""sentence-transformers' directories: texts are cut, prompted and marked as there, and what we write it opens."""

import json

import numpy as np
import pytest
import torch
import transformers
from tiny_bert import TEXTS, TOKENIZER, VOCABULARY, config

from kerasllm import TextClassifier, TextEmbedder, Tokenizer

pytestmark = pytest.mark.one_backend
LONG = ["to be or not to be that is the question", "mind"]
FILES = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ],
    "1_Pooling/config.json": {"word_embedding_dimension": 16, "pooling_mode_cls_token": True},
    "sentence_bert_config.json": {"max_seq_length": 6, "do_lower_case": True},
    "config_sentence_transformers.json": {
        "prompts": {"query": "the mind ", "document": None},
        "default_prompt_name": "query",
        "similarity_fn_name": "dot",
    },
}


@pytest.fixture
def directory(tmp_path):
    """A BERT of transformers with a tokenizer and the files."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    bert = transformers.BertConfig(vocab_size=VOCABULARY, initializer_range=0.5, max_position_embeddings=16, **sizes)
    transformers.BertModel(bert).save_pretrained(tmp_path / "st")
    TOKENIZER.save_to_preset(tmp_path / "st")
    write(tmp_path / "st", FILES)
    return tmp_path / "st"


def write(directory, files):
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True, parents=True)
        (directory / name).write_text(json.dumps(content))


def expected(directory, texts, length=6, prompt="the mind "):
    """The first token's state, by transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    batch = tokenizer(
        [prompt + text for text in texts], truncation=True, max_length=length, padding=True, return_tensors="pt"
    )
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        return transformers.BertModel.from_pretrained(directory).eval()(**batch).last_hidden_state[:, 0].numpy()


def vectors(model, texts):
    return model.predict(texts, verbose=0)


def test_texts_are_cut_and_prompted(directory, tmp_path):
    model = TextEmbedder.from_preset(directory)
    assert (model.pooling, model.normalize, model.max_length, model.truncation) == ("first", False, 6, True)
    np.testing.assert_allclose(vectors(model, LONG), expected(directory, LONG), atol=1e-5)
    np.testing.assert_allclose(vectors(model, LONG[0]), expected(directory, LONG[:1]), atol=1e-5)
    model.default_prompt = None
    np.testing.assert_allclose(vectors(model, LONG), expected(directory, LONG, prompt=""), atol=1e-5)
    model.default_prompt = "query"
    model.save_to_preset(tmp_path / "back")
    for name in FILES:
        found = json.loads((tmp_path / "back" / name).read_text())
        if name == "1_Pooling/config.json":
            assert found["pooling_mode_cls_token"] and sum(map(bool, found.values())) == 3  # width, mode, prompt
        elif name == "modules.json":
            assert found == FILES[name]
    again = TextEmbedder.from_preset(tmp_path / "back")
    assert again.prompts == {"query": "the mind ", "document": ""} and again.default_prompt == "query"
    np.testing.assert_allclose(vectors(again, LONG), vectors(model, LONG), atol=1e-6)


def test_what_is_given_wins_over_the_files(directory):
    model = TextEmbedder.from_preset(directory, pooling="mean", normalize=True, max_length=9, default_prompt="document")
    assert (model.pooling, model.normalize, model.max_length) == ("mean", True, 9)
    assert np.linalg.norm(vectors(model, LONG), axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_the_files_win_over_what_we_saved_before(directory, tmp_path):
    """sentence-transformers keeps config.json's unknown keys when it saves again."""
    TextEmbedder.from_preset(directory, pooling="mean").save_to_preset(tmp_path / "back")
    write(tmp_path / "back", {"1_Pooling/config.json": {"pooling_mode": "lasttoken"}})
    assert TextEmbedder.from_preset(tmp_path / "back").pooling == "last"


def test_other_directories(directory, tmp_path):
    """A folder for the Transformer; the tokenizer's limit; files that are removed or bad."""
    right = expected(directory, LONG)
    old = tmp_path / "old"
    old.mkdir()
    directory.rename(old / "0_Transformer")
    inside = old / "0_Transformer"
    for name in ("modules.json", "config_sentence_transformers.json"):
        (inside / name).rename(old / name)
    (inside / "1_Pooling").rename(old / "1_Pooling")
    modules = [{**FILES["modules.json"][0], "path": "0_Transformer"}, FILES["modules.json"][1]]
    write(old, {"modules.json": modules})
    np.testing.assert_allclose(vectors(TextEmbedder.from_preset(old), LONG), right, atol=1e-5)
    (inside / "sentence_bert_config.json").unlink()
    settings = json.loads((inside / "tokenizer_config.json").read_text())
    write(inside, {"tokenizer_config.json": {**settings, "model_max_length": 7}})
    np.testing.assert_allclose(vectors(TextEmbedder.from_preset(old), LONG), expected(inside, LONG, 7), atol=1e-5)
    write(inside, {"tokenizer_config.json": {**settings, "truncation_side": "left"}})
    for files, message in (
        ({}, "truncation_side='left'"),
        ({"modules.json": {}}, "no JSON array"),
        ({"modules.json": []}, "a list of modules"),
        ({"modules.json": [{**modules[0], "path": "../0_Transformer"}, modules[1]]}, "path="),
        ({"modules.json": modules, "1_Pooling/config.json": {"pooling_mode": 3}}, "pooling_mode=3"),
    ):
        write(old, files)
        with pytest.raises(ValueError, match=message):
            TextEmbedder.from_preset(old)


def test_capital_letters_that_the_tokenizer_tells_apart(directory):
    cased = Tokenizer.train(["To Be to be"] * 9, kind="unigram", vocabulary_size=20)
    cased.save_to_preset(directory)
    with pytest.raises(ValueError, match=r"do_lower_case=true.*Lowercase normalizer"):
        TextEmbedder.from_preset(directory)


def test_files_that_would_say_another_thing_are_not_left(directory):
    TextEmbedder(config(), TOKENIZER, pooling="pooler").save_to_preset(directory)
    assert not (directory / "modules.json").exists()
    assert TextEmbedder.from_preset(directory).pooling == "pooler"
    write(directory, FILES)
    TextClassifier(config(), TOKENIZER).save_to_preset(directory)
    assert not (directory / "modules.json").exists()


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
@pytest.mark.parametrize("normalize", [True, False])
def test_sentence_transformers_opens_what_we_save(pooling, normalize, tmp_path):
    theirs = pytest.importorskip("sentence_transformers")
    model = TextEmbedder(config(), TOKENIZER, pooling=pooling, normalize=normalize, max_length=7, truncation=True)
    model.save_to_preset(tmp_path)
    found = theirs.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(found, vectors(model, TEXTS), atol=1e-5)
