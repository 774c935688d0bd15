"""Every kind of adapter that `peft` writes, and odd ones: computed as there, or refused by name.

Each row of the table is an adapter of a tiny model, saved by peft and perhaps edited; `docs` are made from the labels.
"""

import copy
import json
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from keras import ops
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from test_against_peft import FAMILIES, TYPES, inputs_of, ours, randomize, theirs

from kerasllm.interop import peft_config

pytestmark = pytest.mark.one_backend
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QV = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "bert": ["query", "value"], "t5": ["q", "v"]}


class Row(NamedTuple):
    """An adapter: whose it is, how peft made it, what was done to its files, and what must come of it.

    Args:
        family: of `FAMILIES`.
        config: peft's.
        verdict: "equal", or words of the error that refuses it.
        edit: what is done to the directory after peft saved it.
        save: how it is saved, if not by `save_pretrained(directory)`.
    """

    family: str
    config: Callable[[], Any]
    verdict: str
    edit: Callable = lambda directory: None
    save: Callable | None = None


def lora(family, verdict="equal", edit=lambda directory: None, save=None, **options):
    options = {"r": 4, "lora_alpha": 6, "target_modules": QV[family], "task_type": TYPES[family], **options}
    return Row(family, lambda: LoraConfig(**options), verdict, edit, save)


def keys(**changes):
    """Writes these keys into adapter_config.json; `...` takes a key out."""

    def edit(directory):
        config = json.loads((directory / CONFIG).read_text())
        config = {key: value for key, value in {**config, **changes}.items() if value is not ...}
        (directory / CONFIG).write_text(json.dumps(config))

    return edit


def only(*kept):
    def edit(directory):
        config = json.loads((directory / CONFIG).read_text())
        (directory / CONFIG).write_text(json.dumps({key: config[key] for key in kept}))

    return edit


def tensors(change):
    """Makes other tensors of those in the file."""

    def edit(directory):
        found = change(safetensors.torch.load_file(directory / WEIGHTS))
        safetensors.torch.save_file({k: v.contiguous() for k, v in found.items()}, directory / WEIGHTS)

    return edit


def each(change):
    return tensors(lambda found: {name: change(name, value) for name, value in found.items()})


def without(part):
    return tensors(lambda found: {name: value for name, value in found.items() if part not in name})


def renamed(old, new):
    return tensors(lambda found: {name.replace(old, new): value for name, value in found.items()})


def added(**more):
    return tensors(lambda found: {**found, **{name.replace("__", "."): value for name, value in more.items()}})


def pickled(directory):
    torch.save(safetensors.torch.load_file(directory / WEIGHTS), directory / "adapter_model.bin")
    (directory / WEIGHTS).unlink()


def into_a_folder(directory):
    (directory / "poems").mkdir()
    for file in (CONFIG, WEIGHTS):
        shutil.move(directory / file, directory / "poems" / file)


def converted(peer, directory):
    """PiSSA as peft says to save it: the change since it began, as a plain LoRA."""
    start = directory.parent / f"{directory.name}-start"
    kept = {name: parameter.detach().clone() for name, parameter in peer.named_parameters()}
    peer.peft_config["default"].init_lora_weights = True
    peer.save_pretrained(start)
    peer.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(kept[name] + 0.3 * torch.randn_like(parameter))
    peer.save_pretrained(directory, path_initial_model_for_weight_conversion=str(start))


EMBED = "base_model.model.model.embed_tokens"
EQUAL = {
    "LoRA": lora("llama"),
    "LoRA, of a fused module": lora("gpt2"),
    "LoRA, of a classifier, with its head": lora("bert"),
    "LoRA, of an encoder and decoder": lora("t5"),
    "LoRA, Gaussian beginning": lora("llama", init_lora_weights="gaussian"),
    "LoRA, random beginning": lora("llama", init_lora_weights=False),
    "LoRA, orthogonal beginning": lora("llama", init_lora_weights="orthogonal"),
    "LoRA, EVA": lora("llama", init_lora_weights="eva", eva_config=peft.EvaConfig()),
    "LoRA, MiCA": lora("llama", init_lora_weights="mica", r=2),
    "LoRA, PiSSA, saved as a plain one": lora("llama", init_lora_weights="pissa", save=converted),
    "LoRA, rsLoRA": lora("llama", use_rslora=True),
    "LoRA, DoRA": lora("llama", use_dora=True),
    "LoRA, DoRA and rsLoRA of a fused module": lora("gpt2", use_dora=True, use_rslora=True, r=3),
    "LoRA, a rank above the kernel's": lora("llama", r=32),
    "LoRA, a rank above the kernel's, fused": lora("gpt2", r=30, use_rslora=True),
    "LoRA, DoRA of a rank above the kernel's": lora("llama", r=32, use_dora=True),
    "LoRA, alpha below zero": lora("llama", lora_alpha=-3),
    "LoRA, ranks and alphas by pattern": lora(
        "gpt2",
        target_modules=["c_attn", "c_fc"],
        rank_pattern={"^transformer.h.1.attn.c_attn": 2, "c_fc": 3},
        alpha_pattern={r"h\.[0]\..*c_fc": 9},
    ),
    "LoRA, some layers": lora("gpt2", layers_to_transform=[1]),
    "LoRA, one layer, with a pattern": lora("gpt2", layers_to_transform=0, layers_pattern="h"),
    "LoRA, excluded modules": lora("gpt2", target_modules=["c_attn", "c_proj"], exclude_modules=["mlp.c_proj"]),
    "LoRA, targets by a regular expression": lora("t5", target_modules=r".*decoder.*(SelfAttention|EncDec).*\.(q|o)"),
    "LoRA, all linear layers": lora("llama", target_modules="all-linear"),
    "LoRA, all linear layers of a classifier": lora("bert", target_modules="all-linear"),
    "LoRA, the embedding of an untied model": lora("llama", target_modules=["embed_tokens", "q_proj"]),
    "LoRA, the embedding of a tied model": lora("gpt2", target_modules=["wte", "c_attn"]),
    "LoRA, the embedding, its base not in the file": lora(
        "llama", target_modules=["embed_tokens", "q_proj"], edit=without("base_layer")
    ),
    "LoRA, an embedding trained whole": lora("llama", modules_to_save=["embed_tokens"]),
    "LoRA, an embedding trained whole, tied": lora("gpt2", modules_to_save=["wte"]),
    "LoRA, norms trained whole": lora("gpt2", modules_to_save=["ln_1", "ln_f"]),
    "LoRA, a kernel trained whole": lora("llama", modules_to_save=["o_proj"]),
    "LoRA, the pooler trained whole": lora("bert", modules_to_save=["pooler"]),
    "LoRA, biases of targets": lora("gpt2", bias="lora_only"),
    "LoRA, all biases": lora("bert", bias="all"),
    "LoRA in bfloat16": lora("llama", edit=each(lambda name, x: x.bfloat16())),
    "LoRA in float16, with the embedding": lora(
        "llama", target_modules=["embed_tokens", "q_proj"], edit=each(lambda n, x: x if "base" in n else x.half())
    ),
    "LoRA, few keys": lora("llama", edit=only("peft_type", "r", "lora_alpha", "target_modules")),
    "LoRA, targets left out": lora("llama", edit=keys(target_modules=...)),
    "LoRA, keys of earlier versions": lora("llama", edit=keys(merge_weights=False, enable_lora=None)),
    "LoRA, unknown keys that say nothing": lora("llama", edit=keys(use_later_option=False, later_config=None)),
    "LoRA, training options": lora("llama", lora_dropout=0.1, edit=keys(inference_mode=False, revision="main")),
    "LoRA, settings of methods not used": lora(
        "llama", edit=keys(loftq_config={"loftq_bits": 4}, qalora_group_size=32)
    ),
    "IA3": Row("llama", lambda: IA3Config(task_type="CAUSAL_LM"), "equal"),
    "IA3 of a fused module": Row("gpt2", lambda: IA3Config(task_type="CAUSAL_LM"), "equal"),
    "IA3 of an encoder and decoder": Row("t5", lambda: IA3Config(task_type="SEQ_2_SEQ_LM"), "equal"),
    "Prompt": Row("llama", lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "equal"),
    "P-tuning": Row(
        "llama",
        lambda: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=5),
        "equal",
    ),
    "P-tuning with an LSTM": Row(
        "gpt2",
        lambda: PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=3,
            encoder_reparameterization_type="LSTM",
            encoder_hidden_size=5,
        ),
        "equal",
    ),
    "Prefix": Row("llama", lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "equal"),
    "Prefix with a projection": Row(
        "llama",
        lambda: PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=5
        ),
        "equal",
    ),
}
REFUSED = {
    # Methods that change the base when they begin.
    "PiSSA": lora("llama", "init_lora_weights='pissa'.*path_initial_model", init_lora_weights="pissa"),
    "PiSSA, fast": lora("llama", "pissa_niter_4.*path_initial_model", init_lora_weights="pissa_niter_4"),
    "OLoRA": lora("llama", "init_lora_weights='olora'.*path_initial_model", init_lora_weights="olora"),
    "CorDA": lora("llama", "init_lora_weights='corda'.*path_initial_model", keys(init_lora_weights="corda")),
    "LoRA-GA": lora("llama", "init_lora_weights='lora_ga'.*path_initial", keys(init_lora_weights="lora_ga")),
    "LoftQ": lora("llama", '"init_lora_weights": true', keys(init_lora_weights="loftq")),
    "LoRA, unknown beginning": lora("llama", "init_lora_weights='later'", keys(init_lora_weights="later")),
    # Options that change what is computed.
    "aLoRA": lora("llama", "alora_invocation_tokens=.*plain LoRA", alora_invocation_tokens=[3, 4]),
    "LoRA, bias of B": lora("llama", "lora_bias=True.*merge_and_unload", lora_bias=True),
    "LoRA, single tokens": lora("llama", "trainable_token_indices=.*merge_and_unload", trainable_token_indices=[3]),
    "LoRA, layers replicated": lora("llama", "layer_replication=", layer_replication=[[0, 1], [0, 1]]),
    "LoRA, tied head follows": lora(
        "gpt2", "ensure_weight_tying=True", target_modules=["wte", "c_attn"], edit=keys(ensure_weight_tying=True)
    ),
    "LoRA, parameters as targets": lora("llama", "target_parameters=", keys(target_parameters=["x"])),
    "QA-LoRA": lora("llama", "use_qalora=True", keys(use_qalora=True)),
    "Arrow": lora("llama", "arrow_config=", keys(arrow_config={"top_k": 2})),
    "BD-LoRA": lora("llama", "use_bdlora=", keys(use_bdlora={"nblocks": 2})),
    "KaSA": lora("llama", "kasa_config=.*merge_and_unload", kasa_config=peft.KasaConfig(), r=2),
    "MonteCLoRA": lora("llama", "monteclora_config=", keys(monteclora_config={"n": 2})),
    "Megatron": lora("llama", "megatron_config=", keys(megatron_config={"x": 1})),
    "LoRA of several parts (peft 0.2)": lora("gpt2", "enable_lora=", keys(enable_lora=[True, False, True])),
    "an option of a later version": lora("llama", "use_later_option=3.*does not know", keys(use_later_option=3)),
    "another method": Row("llama", lambda: peft.LoHaConfig(r=2, target_modules=["q_proj"]), "peft_type='LOHA'.*merge"),
    "no method (MLX)": lora("llama", "peft_type=None", keys(peft_type=...)),
    # Layers that cannot carry an adapter.
    "LoRA, an untied head": lora("llama", "lm_head.*head over all tokens cannot", target_modules=["lm_head", "q_proj"]),
    "LoRA, an untied head trained whole": lora("llama", "lm_head.*head over all tokens", modules_to_save=["lm_head"]),
    "LoRA, a tied head trained whole": lora("gpt2", "lm_head.*head over all tokens", modules_to_save=["lm_head"]),
    "LoRA, positions": lora("gpt2", "tables of positions", target_modules=["wpe", "c_attn"]),
    "LoRA, the name of T5's embedding": lora("t5", "only names the embedding", target_modules=["shared", "q"]),
    "LoRA, T5's embedding at two uses": lora("t5", "at one of its uses", target_modules=["embed_tokens", "q"]),
    "DoRA of an embedding": lora(
        "llama", "DoRA goes to Dense", use_dora=True, target_modules=["embed_tokens", "q_proj"]
    ),
    "LoRA of another architecture": lora(
        "llama", "which is no layer of this CausalLM", renamed("self_attn", "attention"), save=None
    ),
    "Prompt of a classifier": Row(
        "bert", lambda: PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3), "classifies the first token"
    ),
    "Prompt and an embedding trained whole": Row(
        "llama",
        lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, modules_to_save=["embed_tokens"]),
        "beside a prompt",
    ),
    # Tensors and config that do not belong together.
    "a changed base beside its adapter": lora(
        "llama",
        "embed_tokens.base_layer.weight'.*differs from this base's",
        each(lambda name, x: x + 1 if "base_layer" in name else x),
        target_modules=["embed_tokens", "q_proj"],
    ),
    "a larger vocabulary": lora(
        "llama", r"for 35 tokens, and this model has 31", added(**{f"{EMBED}.base_layer.weight": torch.zeros(35, 8)})
    ),
    "a larger vocabulary, trained": lora(
        "llama", r"\(35, 8\), and in this model \(31, 8\)", added(**{f"{EMBED}.weight": torch.zeros(35, 8)})
    ),
    "a larger head": lora("llama", "for 35 tokens", added(**{"base_model.model.lm_head.weight": torch.zeros(35, 8)})),
    "another size of base": lora("llama", "do not fit.*Load the base", each(lambda n, x: x[:, : x.shape[1] // 2])),
    "another rank than the config's": lora("llama", "r=2 in adapter_config.json want", keys(r=2)),
    "ranks left out": lora("llama", "r=8 in adapter_config.json want", keys(r=...)),
    "a missing factor": lora("llama", "lacks lora_B of 'model.layers.0.self_attn.q_proj'", without("q_proj.lora_B")),
    "a missing module": lora("llama", "lacks tensors of 'model.layers.0.self_attn.v_proj'", without("v_proj")),
    "a module too many": lora("llama", "not among the target_modules", keys(target_modules=["q_proj"])),
    "a magnitude too many": lora("llama", "magnitude", keys(use_dora=False), use_dora=True),
    "a missing magnitude": lora("llama", "lacks magnitude", keys(use_dora=True)),
    "a missing head": lora("bert", "lacks the weights of 'classifier'", without("classifier")),
    "a prompt in a LoRA": lora("llama", "prompt_embeddings", added(prompt_embeddings=torch.zeros(3, 8))),
    "a bias that is not trained": lora(
        "gpt2",
        "settings know nothing of",
        added(base_model__model__transformer__h__0__attn__c_attn__bias=torch.ones(24)),
    ),
    "a bias where there is none": lora(
        "llama", "has no bias", added(base_model__model__model__layers__0__self_attn__q_proj__bias=torch.ones(8))
    ),
    "empty tensors (ZeRO-3)": lora("llama", "do not fit", each(lambda name, x: torch.zeros(0))),
    "quantized factors": lora("llama", "is I8, and weights are", each(lambda name, x: x.to(torch.int8))),
    "a name of an adapter in the tensors": lora(
        "llama", "no layer of|no supported", renamed("lora_A", "lora_A.default")
    ),
    "pickled weights": lora("llama", "adapter_model.bin, and pickled weights are never read.*save it again", pickled),
    "a folder of adapters": lora("llama", "Its folders have adapters: poems", into_a_folder),
    "rank 0": lora("llama", "r in adapter_config.json must be a whole number", keys(r=0)),
    "a rank in words": lora("llama", "r in adapter_config.json must be", keys(r="4")),
    "alpha in words": lora("llama", "lora_alpha in adapter_config.json must be", keys(lora_alpha="6")),
    "alpha of no number": lora("llama", "lora_alpha in adapter_config.json must be", keys(lora_alpha=float("nan"))),
    "a flag in words": lora("llama", "use_dora in adapter_config.json must be", keys(use_dora="no")),
    "an unknown bias": lora("llama", "bias in adapter_config.json must be", keys(bias="some")),
    "ranks as a list": lora("llama", "rank_pattern in adapter_config.json must be", keys(rank_pattern=[2])),
    "targets as numbers": lora("llama", "target_modules in adapter_config.json must be", keys(target_modules=[1])),
    "a pattern that is none": lora("llama", "no regular expression", keys(target_modules="(q_proj")),
    "IA3, another direction": Row(
        "llama", lambda: IA3Config(task_type="CAUSAL_LM"), "feedforward_modules", keys(feedforward_modules=["k_proj"])
    ),
    "IA3, a vector of another length": Row(
        "llama",
        lambda: IA3Config(task_type="CAUSAL_LM"),
        "Load the base",
        each(lambda n, x: torch.cat([x, x], dim=int(x.shape[0] == 1))),
    ),
    "Prompt of another length": Row(
        "llama",
        lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "num_virtual_tokens=2",
        keys(num_virtual_tokens=2),
    ),
    "Prompt without its vectors": Row(
        "llama",
        lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "lacks 'prompt_embeddings'",
        renamed("prompt_embeddings", "base_model.model.model.norm.weight"),
    ),
    "Prompt of another width": Row(
        "llama",
        lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "has shape",
        each(lambda name, x: x[:, :4]),
    ),
    "Prefix of other heads": Row(
        "llama",
        lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "num_attention_heads=2, and this model has 1",
        keys(num_attention_heads=2, token_dim=4),
    ),
}
TABLE = {**EQUAL, **REFUSED}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """family → (transformers' model, ours)."""
    made = {}
    for family, (cls, config, task) in FAMILIES.items():
        torch.manual_seed(0)
        peer = cls(config).eval()
        with torch.no_grad():
            for parameter in peer.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        directory = tmp_path_factory.mktemp(family)
        peer.save_pretrained(directory)
        made[family] = (peer, task.from_preset(directory))
    return made


def logits(peer, family):
    """Those of the text, without a prompt's."""
    length = inputs_of(family)["decoder_token_ids" if family == "t5" else "token_ids"].shape[1]
    with torch.no_grad():
        found = theirs(peer.eval(), family).numpy()
    return found if found.ndim == 2 else found[:, -length:]


def opened(base, directory, family):
    """What peft makes of a directory."""
    return logits(peft.PeftModel.from_pretrained(copy.deepcopy(base), directory), family)


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=1e-4)


@pytest.mark.filterwarnings("ignore")  # peft's, of what it does not know
@pytest.mark.parametrize("label", TABLE)
def test_peft_s_adapters_are_equal_or_refused(label, bases, tmp_path):
    row = TABLE[label]
    base, model = bases[row.family]
    plain = ops.convert_to_numpy(ours(model, row.family))
    peer = peft.get_peft_model(copy.deepcopy(base), row.config())
    randomize(peer)
    (row.save or peft.PeftModel.save_pretrained)(peer, tmp_path / "theirs")
    row.edit(tmp_path / "theirs")
    try:
        if row.verdict != "equal":
            with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){row.verdict}"):
                model.load_adapter(tmp_path / "theirs")
            assert not model.adapters
            return
        expected = opened(base, tmp_path / "theirs", row.family)
        model.load_adapter(tmp_path / "theirs")
        found = ops.convert_to_numpy(ours(model, row.family))
        close(found, expected)
        assert np.abs(found - plain).max() > 1e-2 * np.abs(plain).max()
        model.save_adapter(tmp_path / "ours")
        close(opened(base, tmp_path / "ours", row.family), expected)
    finally:
        for name in model.adapters:
            model.delete_adapter(name)


@pytest.mark.parametrize("kind", peft_config.READ)
def test_every_key_of_peft_has_one_verdict(kind):
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    theirs = set(config.__dataclass_fields__)
    read, unread = peft_config.READ[kind], peft_config.UNREAD[kind]
    refused = peft_config.REFUSED.get(kind, {})
    known = [*peft_config.HARMLESS, *read, *unread, *refused]
    assert len(known) == len(set(known))
    assert theirs - set(known) == set()
