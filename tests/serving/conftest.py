"""One server of several tiny models for the tests of what it answers: starting one takes longer than most of them."""

import pytest
from served import Server, write_causal
from tiny_bert import TOKENIZER, config

PLAIN = "tiny"


@pytest.fixture(scope="package")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="package")
def models(directory):
    """The models themselves, by the names they are served under."""
    from kerasllm import CausalLM, MaskedLM, TextClassifier, TextEmbedder

    write_causal(directory / PLAIN, length=4096)
    made = {
        "vectors": TextEmbedder(config(), TOKENIZER),
        "kinds": TextClassifier(config(), TOKENIZER, labels=["sad", "glad", "so"]),
        "masks": MaskedLM(config(), TOKENIZER),
    }
    for name, model in made.items():
        model.save_to_preset(directory / name)
    return made | {PLAIN: CausalLM.from_preset(directory / PLAIN)}


@pytest.fixture(scope="package")
def server(directory, models):
    directories = [directory / name for name in (PLAIN, "vectors", "kinds", "masks")]
    server = Server(directories).wait()
    yield server
    code, log = server.stop()
    assert code == 0, log
