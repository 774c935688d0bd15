"""Every directory of `odd_directories` is equal to transformers, also when saved again, or refused with a reason."""

import json
import re
from pathlib import Path

import keras
import numpy as np
import odd_directories
import pytest
import safetensors.numpy
import torch
import transformers
from keras import ops
from odd_directories import DIRECTORIES, HARMLESS, REMOVED, SIZES

import kerasllm
from kerasllm.interop import bert, electra, family, gpt2, llama, t5
from kerasllm.interop.presets import FAMILIES, read_config

IDS = np.random.default_rng(0).integers(3, 64, (2, 10)).astype("int32")
MASK = np.arange(10) < np.array([[10], [7]])
IDS[~MASK] = 0
CLASSES = {
    "CausalLM": {"Llama": "LlamaForCausalLM", "GPT2": "GPT2LMHeadModel"},
    "TextEmbedder": {"Llama": "LlamaModel", "GPT2": "GPT2Model", "Bert": "BertModel", "Electra": "ElectraModel"},
}
MODES = {"cls": "first", "mean": "mean", "lasttoken": "last"}


def make(row, directory: Path) -> None:
    """The directory as transformers saves it, and changed as the row says."""
    config = getattr(transformers, f"{row.family}Config")(**{**SIZES[row.family], **row.config})
    torch.manual_seed(0)
    model = getattr(transformers, row.architecture)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    for name, content in {"config.json": row.json, **row.files}.items():
        path = directory / name
        if name == "config.json":
            content = {**json.loads(path.read_text()), **content}
            content = {key: value for key, value in content.items() if value is not REMOVED}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    if row.tensors:
        path = directory / "model.safetensors"
        tensors = row.tensors(safetensors.numpy.load_file(path), np.random.default_rng(1))
        safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def inputs(row):
    ids, mask = IDS.copy(), MASK
    if row.ends_in_padding:
        ids[0, -2:] = 0
    if "without padding token" in row.label:  # transformers reads one text at a time then.
        ids, mask = ids[:1], mask[:1]
    return ids, mask


def theirs(row, architecture: str, directory: Path):
    """What transformers makes of it, where that counts."""
    model = getattr(transformers, architecture).from_pretrained(directory, dtype=torch.float32).eval()
    ids, mask = (torch.tensor(x).long() for x in inputs(row))
    with torch.no_grad():
        if row.reader == "Seq2SeqLM":
            return model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids.flip(1)).logits.numpy()
        outputs = model(input_ids=ids, attention_mask=mask)
    if row.reader == "TextEmbedder":
        return embedded(row, outputs.last_hidden_state.numpy(), mask.numpy().astype(bool))
    if row.reader == "PairedMaskedLM":
        return outputs.prediction_logits.numpy()[mask.numpy() > 0]
    return outputs.logits.numpy() if row.reader == "TextClassifier" else outputs.logits.numpy()[mask.numpy() > 0]


def embedded(row, hidden, mask):
    """Vectors of hidden states, written out: the mean of all tokens, or what the row's files say."""
    values = row.files.get("1_Pooling/config.json", {})
    modes = [mode for mode in MODES if values.get({"cls": "pooling_mode_cls_token"}.get(mode, f"pooling_mode_{mode}"))]
    mode = values.get("pooling_mode", [*modes, "mean"][0])
    mode = row.options.get("pooling") or MODES[mode[0] if isinstance(mode, list) else mode]
    vectors = {
        "first": hidden[:, 0],
        "mean": (hidden * mask[..., None]).sum(1) / mask.sum(1)[:, None],
        "last": hidden[np.arange(len(hidden)), mask.sum(1) - 1],
    }[mode]
    kinds = [module["type"] for module in row.files.get("modules.json", [])]
    if kinds and not any("Normalize" in kind for kind in kinds):
        return vectors
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ours(row, model):
    ids, mask = inputs(row)
    if row.reader == "Seq2SeqLM":
        x = {"encoder_token_ids": ids, "encoder_padding_mask": mask, "decoder_token_ids": ids[:, ::-1].copy()}
        return ops.convert_to_numpy(model(x))
    found = model({"token_ids": ids, "padding_mask": mask})
    found = ops.convert_to_numpy(found["masked_lm"] if isinstance(found, dict) else found)
    return found if row.reader in ("TextClassifier", "TextEmbedder") else found[mask]


def compare(found, expected):
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def rows(where):
    one = [pytest.mark.one_backend]
    return [pytest.param(row, id=str(row), marks=[] if row.backends else one) for row in DIRECTORIES if where(row)]


@pytest.mark.parametrize("row", rows(lambda row: not row.refused))
@pytest.mark.filterwarnings("ignore")
def test_equal(row, tmp_path):
    make(row, tmp_path / "theirs")
    task = getattr(kerasllm, row.reader)
    model = task.from_preset(tmp_path / "theirs", dtype="float32", **row.options)
    expected = theirs(row, CLASSES.get(row.reader, {}).get(row.family, row.architecture), tmp_path / "theirs")
    compare(ours(row, model), expected)
    if keras.backend.backend() != "torch" or not (row.json or row.tensors or row.backends or "class" in row.label):
        return
    model.save_to_preset(tmp_path / "ours")
    saved = json.loads((tmp_path / "ours/config.json").read_text())
    if saved["model_type"] == "kerasllm":
        compare(ours(row, task.from_preset(tmp_path / "ours")), expected)
    else:
        compare(theirs(row, saved["architectures"][0], tmp_path / "ours"), expected)


@pytest.mark.one_backend
@pytest.mark.parametrize("row", rows(lambda row: row.refused))
def test_refused(row, tmp_path, monkeypatch):
    make(row, tmp_path)
    monkeypatch.setattr(keras.Model, "__init__", lambda *_, **__: pytest.fail("a network was built"))
    if "that there is not" in row.label:  # What a constructor refuses.
        monkeypatch.undo()
    with pytest.raises(ValueError, match=re.escape(row.refused)):
        getattr(kerasllm, row.reader).from_preset(tmp_path, **row.options)


def test_the_table_is_whole():
    """Ten odd directories for each reader, and no label twice."""
    labels = [f"{row} {row.reader}" for row in DIRECTORIES]
    assert len(set(labels)) == len(labels) >= 147
    tables = (odd_directories.LLAMAS, odd_directories.GPTS, odd_directories.BERTS, odd_directories.ELECTRAS)
    assert min(map(len, (*tables, odd_directories.T5S, odd_directories.SENTENCES))) >= 16
    assert all(row.verdict.startswith(("equal", "refused: ")) for row in DIRECTORIES)


@pytest.mark.one_backend
def test_every_other_family_is_refused_by_name(tmp_path):
    """All of transformers', from config.json alone."""
    others = set(transformers.CONFIG_MAPPING) - set(FAMILIES)
    assert len(others) > 200
    for kind in others:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(ValueError, match=f"Unknown model_type '{re.escape(kind)}'.*Supported: gpt2"):
            read_config(tmp_path)


# Keys of config.json ---------------------------------------------------------------------------------------------

SHARED = (
    "masking_utils",
    "modeling_rope_utils",
    "modeling_layers",
    "cache_utils",
    "configuration_utils",
    "modeling_utils",
)
OURS = {"gpt2": gpt2, "bert": bert, "electra": electra, "t5": t5, "llama": llama}


def keys_read(text: str) -> set[str]:
    """Keys that code reads of a config."""
    found = re.findall(r"\bconfig\.([a-z_0-9]+)\b(?!\()", text)
    return {*found, *re.findall(r'(?:getattr|hasattr)\(\s*\w*\.?_?\w*config[\w()=.]*,\s*"([a-z_0-9]+)"', text)}


@pytest.mark.one_backend
@pytest.mark.parametrize("name", OURS)
def test_every_key_that_transformers_reads_is_understood_refused_or_harmless(name):
    """A key that a new version of transformers begins to read is to be looked at."""
    folder = Path(transformers.__file__).parent
    text = (folder / f"models/{name}/modeling_{name}.py").read_text()
    module = OURS[name]
    source = "".join(Path(m.__file__).read_text() for m in (module, bert, family, kerasllm.interop.tasks))
    known = set(re.findall(r"[a-z_0-9]+", source)) | HARMLESS | set(getattr(module, "ALIASES", ()))
    assert keys_read(text) - known == set()


@pytest.mark.one_backend
def test_every_key_that_transformers_reads_for_all_families_is_looked_at():
    """Of the code that all families share; what is read for kinds of models that ours are not is listed apart."""
    folder = Path(transformers.__file__).parent
    read = set().union(*(keys_read((folder / f"{name}.py").read_text()) for name in SHARED))
    source = "".join(Path(m.__file__).read_text() for m in (*OURS.values(), family, kerasllm.interop.tasks))
    known = set(re.findall(r"[a-z_0-9]+", source)) | HARMLESS | odd_directories.OF_OTHER_FAMILIES
    assert read - known == set()
