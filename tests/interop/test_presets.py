"""Directories of models: ours round trip, nothing half-written, and no file of anybody's is trusted."""

import dataclasses
import errno
import json
import pickle
import struct
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy
from keras import ops

from kerasllm import CausalLM, Tokenizer, TransformerConfig

VOCABULARY, LENGTH = 270, 8
LLAMA_LIKE = {
    "norm": "rms_norm",
    "positions": "rotary",
    "rope_theta": 5e5,
    "gated": True,
    "use_bias": False,
    "num_kv_heads": 1,
    "activation": "silu",
    "tie_embeddings": False,
    "sliding_window": 5,
}


def make_model(tokenizer=None, **changes):
    keras.utils.set_random_seed(0)
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "initializer_range": 0.2}
    return CausalLM(TransformerConfig(VOCABULARY, LENGTH, **sizes, **changes), tokenizer=tokenizer)


def logits(model):
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH)).astype("int32")
    return ops.convert_to_numpy(model(ids))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train("to be or not to be", kind="bpe", vocabulary_size=VOCABULARY)


@pytest.fixture
def saved(tmp_path, tokenizer):
    make_model(tokenizer).save_to_preset(tmp_path / "model")
    return tmp_path / "model"


def edit_json(path: Path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(directory, change):
    path = directory / "model.safetensors"
    weights = change(safetensors.numpy.load_file(path))
    safetensors.numpy.save_file(weights, path)


@pytest.mark.parametrize(
    "changes, kind",
    [
        ({}, "gpt2"),
        ({"tie_embeddings": False, "activation": "gelu", "dropout": 0.1}, "gpt2"),
        (LLAMA_LIKE, "kerasllm"),
        (
            {"norm_position": "post", "positions": "sinusoidal", "scale_embeddings": True, "head_dim": 5},
            "kerasllm",
        ),
    ],
    ids=["gpt2", "untied", "llama_like", "vaswani_like"],
)
def test_round_trip(changes, kind, tmp_path, tokenizer):
    model = make_model(tokenizer, **changes)
    model.save_to_preset(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind
    loaded = CausalLM.from_preset(tmp_path)
    assert loaded.config == model.config
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
    np.testing.assert_allclose(logits(loaded), logits(model), atol=1e-6)


def test_the_files_are_those_of_hugging_face(saved):
    names = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    }
    assert {path.name for path in saved.iterdir()} == names
    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"] and config["eos_token_id"] == 0


def test_a_model_without_a_tokenizer_and_saving_twice(tmp_path):
    model = make_model()
    model.save_to_preset(tmp_path)
    model.set_weights([w + 1 for w in model.get_weights()])
    model.save_to_preset(tmp_path)
    loaded = CausalLM.from_preset(str(tmp_path))
    assert loaded.tokenizer is None
    np.testing.assert_allclose(logits(loaded), logits(model), atol=1e-6)


def test_bare_gpt2_files_open(saved):
    """Files of GPT2Model have no "transformer." prefix, and old ones carry mask buffers."""

    def bare(weights):
        renamed = {name.removeprefix("transformer."): w for name, w in weights.items()}
        return {**renamed, "h.0.attn.bias": np.ones((1, 1, LENGTH, LENGTH), "float32")}

    expected = logits(CausalLM.from_preset(saved))
    edit_weights(saved, bare)
    np.testing.assert_allclose(logits(CausalLM.from_preset(saved)), expected)


# Interrupted saves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(5))
def test_a_full_disk_leaves_the_earlier_files(saved, tokenizer, monkeypatch, after):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    model = make_model(tokenizer)
    model.set_weights([w + 1 for w in model.get_weights()])
    writes = []

    def counting(write):
        def limited(*arguments, **options):
            writes.append(1)
            if len(writes) > after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(*arguments, **options)

        return limited

    monkeypatch.setattr(safetensors.numpy, "save_file", counting(safetensors.numpy.save_file))
    monkeypatch.setattr(Path, "write_text", counting(Path.write_text))
    with pytest.raises(OSError, match="No space left"):
        model.save_to_preset(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_what_a_killed_save_left_is_no_obstacle(saved, tokenizer):
    (saved / ".preset").mkdir()
    (saved / ".preset" / "model.safetensors").write_bytes(b"half")
    make_model(tokenizer).save_to_preset(saved)
    assert not (saved / ".preset").exists()
    CausalLM.from_preset(saved)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ValueError, match="taken"):
        make_model().save_to_preset(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


# Bad directories --------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_built(saved, monkeypatch):
    """Once there is a good directory to spoil: a bad one must be refused before a network is made."""

    def refuse(self, *arguments, **options):
        raise AssertionError("a network was built from a bad directory")

    monkeypatch.setattr("kerasllm.models.transformer.Transformer.__init__", refuse)


@pytest.mark.usefixtures("nothing_is_built")
class TestRefused:
    """Each with an error that names what is wrong, before anything is allocated."""

    def refused(self, directory, message, error=ValueError):
        with pytest.raises(error, match=message):
            CausalLM.from_preset(directory)

    def test_no_directory(self, tmp_path):
        self.refused(tmp_path / "nowhere", r"nowhere.*config\.json", FileNotFoundError)

    def test_no_config(self, saved):
        (saved / "config.json").unlink()
        self.refused(saved, r"no config\.json", FileNotFoundError)

    def test_no_weights_and_a_pickle_is_never_read(self, saved, tmp_path):
        (saved / "model.safetensors").unlink()
        flag = tmp_path / "ran"

        class Evil:
            def __reduce__(self):
                return (Path.touch, (flag,))

        (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
        self.refused(saved, r"model\.safetensors.*\.bin", FileNotFoundError)
        assert not flag.exists()

    @pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"gpt2"', "\x00\xff", "[" * 100_000])
    def test_damaged_json(self, saved, text):
        (saved / "config.json").write_bytes(text.encode("latin-1"))
        self.refused(saved, r"config\.json")

    def test_endless_json(self, saved):
        (saved / "config.json").write_text(" " * (2 << 20))
        self.refused(saved, "larger than")

    @pytest.mark.parametrize("kind", ["mamba", None, 3, ["gpt2"], "../gpt2", "__init__"])
    def test_unknown_model_type(self, saved, kind):
        edit_json(saved / "config.json", model_type=kind)
        self.refused(saved, r"Unknown model_type.*gpt2")

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"n_embd": 17}, "hidden_dim=17"),
            ({"n_embd": "16"}, "hidden_dim='16'"),
            ({"n_layer": 0}, "num_layers=0"),
            ({"n_layer": 10**7}, "num_layers=10000000"),
            ({"n_head": None}, "num_heads=None"),
            ({"vocab_size": 2**60}, "vocabulary_size"),
            ({"activation_function": "tanh"}, "tanh"),
            ({"activation_function": ["relu"]}, "relu"),
            ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
            ({"tie_word_embeddings": "no"}, "tie_embeddings='no'"),
        ],
        ids=str,
    )
    def test_bad_values(self, saved, changes, message):
        edit_json(saved / "config.json", **changes)
        self.refused(saved, message)

    @pytest.mark.parametrize(
        "changes",
        [{"vocab_size": 2**24}, {"n_positions": 2**24}, {"n_embd": 2**24, "n_head": 1}, {"n_layer": 4000}],
        ids=str,
    )
    def test_sizes_that_the_file_does_not_have(self, saved, changes):
        edit_json(saved / "config.json", **changes)
        self.refused(saved, "has shape|lacks")

    def test_own_format(self, tmp_path, saved):
        edit_json(saved / "config.json", model_type="kerasllm")
        self.refused(saved, "transformer")
        config = TransformerConfig(VOCABULARY, LENGTH, num_layers=1, num_heads=2, hidden_dim=16).to_dict()
        edit_json(saved / "config.json", transformer={**config, "lambda": "print()"})
        self.refused(saved, "Unknown config key 'lambda'")
        endless = {"positions": "rotary", "head_dim": 64, "max_sequence_length": 2**24}
        edit_json(saved / "config.json", transformer={**config, **endless})
        self.refused(saved, "max_sequence_length=16777216")

    @pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
    def test_truncated_weights(self, saved, keep):
        path = saved / "model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])
        self.refused(saved, r"model\.safetensors.*(damaged|not a safetensors)")

    @pytest.mark.parametrize("length", [2**62, 10**9, 3])
    def test_a_header_that_lies_about_its_length(self, saved, length):
        path = saved / "model.safetensors"
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
        self.refused(saved, "damaged")

    def test_a_tensor_that_lies_about_its_size(self, saved):
        header = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 8]}}).encode()
        (saved / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
        self.refused(saved, "damaged")

    def test_a_pickle_under_the_name_of_weights(self, saved):
        (saved / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
        self.refused(saved, "damaged")

    def test_a_missing_tensor(self, saved):
        edit_weights(saved, lambda w: {n: v for n, v in w.items() if n != "transformer.h.0.ln_2.bias"})
        self.refused(saved, r"lacks transformer\.h\.0\.ln_2\.bias")

    def test_an_extra_tensor(self, saved):
        edit_weights(saved, lambda w: {**w, "transformer.h.1.ln_1.bias": np.ones(16, "float32")})
        self.refused(saved, r"knows nothing of: transformer\.h\.1\.ln_1\.bias")

    def test_a_wrong_shape(self, saved):
        edit_weights(saved, lambda w: {**w, "transformer.ln_f.bias": np.ones(15, "float32")})
        self.refused(saved, r"'transformer\.ln_f\.bias'.*\(15,\).*\(16,\)")

    def test_a_transposed_tensor(self, saved):
        edit_weights(saved, lambda w: {n: np.ascontiguousarray(v.T) if "c_fc.weight" in n else v for n, v in w.items()})
        self.refused(saved, r"c_fc\.weight.*\(64, 16\).*\(16, 64\)")

    def test_weights_that_are_no_numbers_of_ours(self, saved):
        edit_weights(saved, lambda w: {**w, "transformer.ln_f.bias": np.ones(16, "int64")})
        self.refused(saved, r"transformer\.ln_f\.bias.*I64")

    def test_a_damaged_tokenizer(self, saved):
        (saved / "tokenizer.json").write_text("{}")
        self.refused(saved, r"tokenizer\.json")


def test_a_keras_file_is_never_opened(saved, monkeypatch):
    """A directory may hold one; we load the safetensors beside it and never ask Keras to read anything."""

    def refuse(*arguments, **options):
        raise AssertionError("Keras's loader was called")

    for name in ("load_model", "load_weights", "deserialize_keras_object"):
        monkeypatch.setattr(keras.saving, name, refuse)
    (saved / "model.keras").write_bytes(b"PK\x03\x04")
    assert CausalLM.from_preset(saved).config.vocabulary_size == VOCABULARY
    with pytest.raises(FileNotFoundError):
        CausalLM.from_preset(saved / "model.keras")


def test_code_in_a_directory_is_not_run(saved, tmp_path):
    flag = tmp_path / "ran"
    (saved / "modeling.py").write_text(f"open({str(flag)!r}, 'w')")
    edit_json(saved / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling.Evil", None]})
    CausalLM.from_preset(saved)
    edit_json(saved / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Evil"}, trust_remote_code=True)
    with pytest.raises(ValueError, match=r"AutoModelForCausalLM.*plain gpt2, remove auto_map"):
        CausalLM.from_preset(saved)
    assert not flag.exists()


@pytest.mark.one_backend
def test_a_tensor_of_several_weights_that_lies_the_other_way(saved, monkeypatch):
    """A table may say that weights lie side by side in a tensor, and (out, in)."""
    from kerasllm.interop import presets

    def turned(config):
        table = presets.gpt2.tensors(config)
        return {name: [f"{p}.T" for p in paths] if "c_attn.weight" in name else paths for name, paths in table.items()}

    expected = logits(CausalLM.from_preset(saved))
    monkeypatch.setitem(presets.FAMILIES, "gpt2", dataclasses.replace(presets.gpt2.FAMILY, tensors=turned))
    with pytest.raises(ValueError, match=r"c_attn\.weight.*shape \(16, 48\).*\(48, 16\)"):
        CausalLM.from_preset(saved)
    edit_weights(saved, lambda w: {n: np.ascontiguousarray(v.T) if "c_attn.weight" in n else v for n, v in w.items()})
    model = CausalLM.from_preset(saved)
    np.testing.assert_allclose(logits(model), expected)
    before = safetensors.numpy.load_file(saved / "model.safetensors")
    model.save_to_preset(saved)
    after = safetensors.numpy.load_file(saved / "model.safetensors")
    np.testing.assert_array_equal(
        after["transformer.h.0.attn.c_attn.weight"], before["transformer.h.0.attn.c_attn.weight"]
    )
