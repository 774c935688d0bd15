"""A served playground with three tiny models, which have learned nothing."""

import pytest

TEXT = "the cat sat on the mat and looked at the moon. a function returns the value of the list. " * 4


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    """The folder of the models that ship, as small as can be."""
    import keras

    import kerasllm
    from kerasllm.training.tasks import BERT_TOKENS, T5_TOKENS

    keras.utils.set_random_seed(7)
    folder = tmp_path_factory.mktemp("shipped")
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 256}
    name, train = kerasllm.TransformerConfig.from_name, kerasllm.Tokenizer.train
    tokenizer = train(TEXT, "bpe", 300)
    config = kerasllm.TransformerConfig(vocabulary_size=tokenizer.vocabulary_size, **sizes)
    kerasllm.CausalLM(config, tokenizer).save_to_preset(folder / "gpt-tiny")
    tokenizer = train(TEXT, "wordpiece", 120, BERT_TOKENS)
    config = name("bert_tiny", vocabulary_size=tokenizer.vocabulary_size, intermediate_dim=32, **sizes)
    kerasllm.MaskedLM(config, tokenizer).save_to_preset(folder / "bert-tiny")
    tokenizer = train(TEXT + " 0123456789-May", "char", special_tokens=T5_TOKENS)
    small = {**sizes, "num_encoder_layers": 2, "intermediate_dim": 32, "head_dim": 8}
    config = name("t5_tiny", vocabulary_size=tokenizer.vocabulary_size, **small)
    kerasllm.Seq2SeqLM(config, tokenizer).save_to_preset(folder / "t5-dates-tiny")
    return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """The folder of the sessions, with a built-in text that is there already."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "python-docs.txt").write_text(TEXT * 20, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def address(shipped, root):
    """Where a playground is served."""
    pytest.importorskip("gradio")
    from playground.server import Settings, served

    with served(Settings(root=root, shipped=shipped)) as at:
        yield at
