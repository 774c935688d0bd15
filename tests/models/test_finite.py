"""Weights that are not finite are not saved without a word."""

import warnings

import numpy as np
import pytest

import kerasllm

CONFIG = kerasllm.TransformerConfig(16, 8, num_layers=1, num_heads=1, hidden_dim=8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, None], ids=["NaN", "infinite", "finite"])
def test_weights_that_are_not_finite_are_told_when_saved(value, dtype, tmp_path):
    model = kerasllm.CausalLM(CONFIG, dtype=dtype)
    if value is not None:
        kernel = model.get_layer("transformer").blocks[0].attention.query.kernel
        kernel.assign(np.full(kernel.shape, value))
        with pytest.warns(UserWarning, match=r"not finite \(NaN or infinite\): .*attention/query/kernel\."):
            model.save_to_preset(tmp_path / "model")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model.save_to_preset(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()
