"""Answers of every route of one server of several models: vectors, labels, masks, tokens, adapters."""

import base64
import concurrent.futures

import keras
import numpy as np
import openai
import pytest
from served import END, FORBID_END, KEY
from tiny_bert import TEXTS

from kerasllm import CausalLM
from kerasllm.tuning import LoRA

pytestmark = pytest.mark.one_backend

PROMPT = {"prompt": "To be,", "max_tokens": 12, "temperature": 0, "logit_bias": FORBID_END}
PLAIN, GREEDY = "tiny", {"strip_prompt": True, "logit_bias": {END: -100.0}}


@pytest.fixture(scope="module")
def adapters(directory, models):
    """Two adapters' directories and what the model says with each, by name."""
    model, said = CausalLM.from_preset(directory / PLAIN), {}
    for seed, name in enumerate(("poems", "letters")):
        model.add_adapter(name, LoRA(rank=2))
        model.set_adapter([name])
        for variable in model.trainable_variables:
            variable.assign(keras.random.normal(variable.shape, seed=seed))
        model.save_adapter(directory / name, name)
        said[name] = model.generate("To be,", 12, **GREEDY)
    assert len({*said.values(), models[PLAIN].generate("To be,", 12, **GREEDY)}) == 3
    return said


def ask(server, path, status=200, **body):
    answer = server.http.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json() if status == 200 else answer.json()["error"]


def test_embeddings_are_the_models_own_to_the_client_of_openai(server, models):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
    expected = models["vectors"].predict(TEXTS, verbose=0)
    for options in ({}, {"encoding_format": "float"}):  # The client asks for base64 when it is not told.
        answer = client.embeddings.create(model="vectors", input=TEXTS, **options)
        np.testing.assert_allclose([row.embedding for row in answer.data], expected, atol=1e-5)
    assert [row.index for row in answer.data] == list(range(len(TEXTS)))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)
    [raw] = ask(server, "/v1/embeddings", model="vectors", input=TEXTS[0], encoding_format="base64")["data"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(raw["embedding"]), "<f4"), expected[0], atol=1e-5)
    ids = ask(server, "/tokenize", model="vectors", prompt=TEXTS[0])["tokens"]
    of_ids = client.embeddings.create(model="vectors", input=[ids], encoding_format="float").data[0].embedding
    of_ids_alone = client.embeddings.create(model="vectors", input=ids, encoding_format="float").data[0].embedding
    assert of_ids == of_ids_alone
    with pytest.raises(openai.BadRequestError, match=r"'tiny' is a CausalLM.* TextEmbedder"):
        client.embeddings.create(model=PLAIN, input="a")


def test_classify_and_predict_give_the_labels_of_classify(server, models):
    rows = [TEXTS[0], [TEXTS[1], TEXTS[3]]]
    expected = models["kinds"].classify([TEXTS[0], tuple(rows[1])])
    answer = ask(server, "/v1/classify", model="kinds", input=rows)
    predictions = ask(server, "/v1/models/kinds:predict", instances=rows)["predictions"]
    assert [row["index"] for row in answer["data"]] == [0, 1] and answer["usage"]["total_tokens"] > 8
    for given in (answer["data"], predictions):
        assert [row["label"] for row in given] == [one.label for one in expected]
        for row, one in zip(given, expected):
            assert row["probabilities"] == pytest.approx(one.probabilities, abs=1e-5)
    [alone] = ask(server, "/v1/classify", model="kinds", input=TEXTS[0])["data"]
    assert alone["label"] == expected[0].label
    assert alone["probabilities"] == pytest.approx(expected[0].probabilities, abs=1e-5)
    assert server.http.get("/v1/models/kinds").json()["model_version_status"][0]["state"] == "AVAILABLE"


def test_fill_mask_and_predict_give_the_tokens_of_predict_masks(server, models):
    text = "to [MASK] or not to [MASK]"
    expected = models["masks"].predict_masks(text, 5)
    [row] = ask(server, "/v1/fill-mask", model="masks", input=text)["data"]
    [predicted] = ask(server, "/v1/models/masks:predict", instances=[text])["predictions"]
    for masks in (row["masks"], predicted):
        assert [[one["token"] for one in mask] for mask in masks] == [[one.token for one in mask] for mask in expected]
        assert masks[0][0]["probability"] == pytest.approx(expected[0][0].probability, abs=1e-5)
    [row] = ask(server, "/v1/fill-mask", model="masks", input=[text], top_k=2)["data"]
    assert [len(mask) for mask in row["masks"]] == [2, 2]
    assert "[MASK]" in ask(server, "/v1/fill-mask", 400, model="masks", input="nothing hidden")["message"]


def test_predict_gives_vectors_and_refuses_what_makes_tokens(server, models):
    given = ask(server, "/v1/models/vectors:predict", instances=TEXTS[:2])["predictions"]
    np.testing.assert_allclose(given, models["vectors"].predict(TEXTS[:2], verbose=0), atol=1e-5)
    assert "TextClassifier" in ask(server, f"/v1/models/{PLAIN}:predict", 400, instances=["a"])["message"]
    assert ask(server, "/v1/models/none:predict", 404, instances=["a"])["code"] == "model_not_found"


def test_tokens_go_back_and_forth(server, models):
    text = "Ça va? 🙂"
    answer = ask(server, "/tokenize", model=PLAIN, prompt=text)
    assert answer == {"tokens": models[PLAIN].tokenizer.encode(text), "count": 12, "max_model_len": 4096}
    assert ask(server, "/detokenize", model=PLAIN, tokens=answer["tokens"]) == {"prompt": text}
    assert "99999" in ask(server, "/detokenize", 400, model=PLAIN, tokens=[99999])["message"]


def test_adapters_are_loaded_asked_and_unloaded(server, directory, models, adapters):
    def said(name):
        return ask(server, "/v1/completions", model=name, **PROMPT)["choices"][0]["text"]

    def load(name, status=200, **changes):
        body = {"lora_name": name, "lora_path": str(directory / name), "base_model": PLAIN, **changes}
        return ask(server, "/v1/load_lora_adapter", status, **body)

    plain = models[PLAIN].generate("To be,", 12, **GREEDY)
    unknown = ask(server, "/v1/completions", 404, model="poems", **PROMPT)
    assert (unknown["code"], unknown["param"]) == ("model_not_found", "model") and PLAIN in unknown["message"]
    assert "whose" in load("poems", 400, base_model=None)["message"]
    assert "TextEmbedder" in load("poems", 400, base_model="vectors")["message"]
    assert "adapter_config.json" in load("poems", 400, lora_path=str(directory / PLAIN))["message"]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        body = {"lora_name": "poems", "lora_path": str(directory / "poems"), "base_model": PLAIN}
        at_once = [pool.submit(server.http.post, "/v1/load_lora_adapter", json=body) for _ in range(4)]
        answers = [call.result() for call in at_once]
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]
    assert all("taken" in answer.text for answer in answers if answer.status_code == 400)
    assert load("letters") == {"loaded": "letters", "base_model": PLAIN}
    names = (PLAIN, "poems", "letters") * 2
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert list(pool.map(said, names)) == [plain, adapters["poems"], adapters["letters"]] * 2
    listed = {row["id"]: row.get("parent") for row in server.http.get("/v1/models").json()["data"]}
    assert listed == dict.fromkeys((PLAIN, "vectors", "kinds", "masks")) | {"poems": PLAIN, "letters": PLAIN}
    for name in ("poems", "letters"):
        assert ask(server, "/v1/unload_lora_adapter", lora_name=name) == {"unloaded": name, "base_model": PLAIN}
        assert ask(server, "/v1/unload_lora_adapter", 404, lora_name=name)["code"] == "model_not_found"
    ask(server, "/v1/completions", 404, model="poems", **PROMPT)
    assert "not an adapter" in ask(server, "/v1/unload_lora_adapter", 400, lora_name=PLAIN)["message"]
    assert said(PLAIN) == plain


def test_a_body_that_is_not_said_to_be_json_is_told_so(server):
    answer = server.http.post("/v1/completions", content=b'{"model": "tiny", "prompt": "a"}')
    assert answer.status_code == 400 and "Content-Type: application/json" in answer.json()["error"]["message"]
    assert "/v1/fill-mask" in ask(server, "/v1/completions", 400, model="masks", prompt="a")["message"]
