"""A tokenizer that puts a start token before a text, as Llama's does: the model reads it wherever it reads text."""

import pytest
import tokenizers as tk

import kerasllm
from kerasllm.chat.tokens import encode_prompt
from kerasllm.data.pipeline import tokenize
from kerasllm.serving.tf_text import _begun

TEXT = "hello there"


@pytest.fixture(scope="module")
def tokenizer():
    made = tk.Tokenizer(tk.models.BPE())
    made.pre_tokenizer, made.decoder = tk.pre_tokenizers.ByteLevel(False), tk.decoders.ByteLevel()
    alphabet = tk.pre_tokenizers.ByteLevel.alphabet()
    trainer = tk.trainers.BpeTrainer(vocab_size=280, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    made.train_from_iterator([TEXT] * 9, trainer)
    made.post_processor = tk.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return kerasllm.Tokenizer(made, {"bos_token": "<s>", "eos_token": "</s>"})


@pytest.fixture(scope="module")
def model(tokenizer):
    config = kerasllm.TransformerConfig(
        tokenizer.vocabulary_size, 16, num_layers=1, num_heads=2, hidden_dim=16, initializer_range=0.5
    )
    return kerasllm.CausalLM(config, tokenizer)


def test_every_way_of_reading_text_begins_with_the_start_token(model, tokenizer):
    ids = [0, *tokenizer.encode(TEXT)]
    assert model.as_inputs([TEXT])["token_ids"].tolist() == [ids]
    [written] = model.generate([TEXT], 4, details=True)
    assert written.token_ids == model.generate(ids, 4, strip_prompt=True)
    assert len(model.score([TEXT])[0]) == len(ids) - 1
    assert model.trace(TEXT).tokens[0] == "<s>"
    x, *_ = model.as_data([TEXT], batch_size=1)[0]
    assert x["token_ids"][0].tolist() == [*ids, tokenizer.end_token_id]
    shards = tokenize([TEXT, TEXT], tokenizer)
    assert shards.read(0, len(shards)).tolist() == [*ids, tokenizer.end_token_id] * 2


def test_an_empty_prompt_is_the_start_token(model):
    assert model.generate("", 3, details=True).token_ids == model.generate([0], 3, strip_prompt=True)


def test_it_is_never_doubled(model, tokenizer):
    assert tokenizer.encode_texts(["<s>" + TEXT]) == tokenizer.encode_texts([TEXT])
    tokenizer = kerasllm.Tokenizer.from_config(tokenizer.get_config())
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert encode_prompt(tokenizer, [{"role": "user", "content": TEXT}]) == [0, *tokenizer.encode(TEXT)]


@pytest.mark.one_backend
def test_a_graph_that_reads_text_does_so_too():
    tf = pytest.importorskip("tensorflow")
    rows = _begun(tf.ragged.constant([[5, 6], [], [0, 7]], dtype="int32"), [0])
    assert rows.to_list() == [[0, 5, 6], [0], [0, 7]]


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("template", "roles", "start"),
    [
        ("<s> $A </s>", {"bos_token": "<s>", "eos_token": "</s>"}, [0]),
        ("$A </s>", {"bos_token": "<s>", "eos_token": "</s>"}, []),
        ("$A </s>", {"bos_token": "</s>", "eos_token": "</s>"}, []),
        ("<s> $A </s>", {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>"}, []),
        (None, {"bos_token": "<s>"}, []),
    ],
    ids=["start and end", "end alone", "one token for both", "an encoder's", "no template"],
)
def test_the_start_token_is_what_the_template_says(tokenizer, template, roles, start):
    rust = tk.Tokenizer.from_str(tokenizer.get_config()["tokenizer"])
    special = [("<s>", 0), ("</s>", 1)]
    rust.post_processor = (
        tk.processors.TemplateProcessing(single=template, special_tokens=special)
        if template
        else tk.processors.ByteLevel(trim_offsets=False)
    )
    assert kerasllm.Tokenizer(rust, roles).text_start_ids == start


@pytest.mark.one_backend
def test_generation_equals_transformers_pipeline(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = kerasllm.TransformerConfig.from_name(
        "llama_tiny", vocabulary_size=model.config.vocabulary_size, num_layers=1, num_heads=2, hidden_dim=16,
        intermediate_dim=24, num_kv_heads=2, max_sequence_length=16, initializer_range=0.5,
    )  # fmt: skip
    llama = kerasllm.CausalLM(config, model.tokenizer)
    llama.save_to_preset(tmp_path)
    pipeline = transformers.pipeline("text-generation", str(tmp_path), device="cpu")
    theirs = pipeline([TEXT, "the"], max_new_tokens=5, do_sample=False, return_tensors=True)
    ours = [model.tokenizer.encode_texts([text])[0] for text in (TEXT, "the")]
    ours = [ids + llama.generate(ids, 5, strip_prompt=True) for ids in ours]
    assert [row[0]["generated_token_ids"] for row in theirs] == ours
