"""Pictures of a trace, and `kerasllm inspect`."""

import numpy as np
import pytest
from inspected_models import TEXT, made, trace
from typer.testing import CliRunner

from kerasllm.cli import app
from kerasllm.models.trace import Trace

pytestmark = pytest.mark.one_backend


def size(figure, tmp_path):
    figure.savefig(tmp_path / "it.png")
    return (tmp_path / "it.png").stat().st_size


@pytest.mark.parametrize("kind", ["gpt", "t5"])
def test_each_picture_is_drawn(kind, tmp_path):
    seen = trace(made(kind))
    stack = "cross" if kind == "t5" else "decoder"
    for figure in (seen.plot_heads(stack), seen.plot_attention(1, 3, stack), seen.plot_logit_lens()):
        assert size(figure, tmp_path) > 3000
        assert figure._repr_png_().startswith(b"\x89PNG")
    mosaic = np.asarray(seen.plot_heads(stack).axes[0].images[0].get_array().filled(-1))
    weights = seen.attention_maps(stack).weights
    rows, columns = weights.shape[2:]
    np.testing.assert_array_equal(mosaic[rows + 1 :, columns + 1 :][:rows, :columns], weights[1, 1])
    shown = np.asarray(seen.plot_attention(1, 3, stack).axes[0].images[0].get_array())
    np.testing.assert_array_equal(shown, weights[1, 3])


def test_odd_and_many_tokens_are_drawn_as_they_are(tmp_path):
    tokens = ["$x$", "$", "\n", "<b>", "\\frac", "a" * 50]
    figure = Trace(tokens, [np.full((1, 1, 6, 6), 1 / 6, "float32")], [], None, None).plot_attention(0, 0)
    assert size(figure, tmp_path) > 3000
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels[:3] == ["$x$", "$", "\\n"] and len(labels[5]) == 12
    long = Trace(["x"] * 200, [np.full((1, 2, 200, 200), 1 / 200, "float32")], [], None, None)
    assert size(long.plot_attention(0, 1), tmp_path) > 3000 and size(long.plot_heads(), tmp_path) > 3000


def test_a_head_or_kind_that_is_not_there():
    seen = trace(made("gpt"))
    for arguments, message in (((2, 0), "no layer 2"), ((0, 4), "no head 4"), ((0, 0, "cross"), "no cross-attention")):
        with pytest.raises(ValueError, match=message):
            seen.plot_attention(*arguments)


def run(*arguments, code=0):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["inspect", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_the_command_prints_tables_and_writes_pictures(tmp_path):
    made("gpt").save_to_preset(tmp_path / "gpt")
    made("t5").save_to_preset(tmp_path / "t5")
    output = run(tmp_path / "gpt", TEXT, "--output", tmp_path / "pictures", "--ablate")
    assert "Likeliest tokens after 't'" in output and "Where most attention goes" in output
    assert "Loss without each head, against" in output and "head 3" in output and "layer 1" in output
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"heads.png", "lens.png"}
    run(tmp_path / "t5", TEXT, "--target", "be", "--output", tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 3000
    run(tmp_path / "t5", TEXT, "--target", "be", "--output", tmp_path / "all")
    expected = {"heads-decoder.png", "heads-encoder.png", "heads-cross.png", "lens.png"}
    assert {path.name for path in (tmp_path / "all").iterdir()} == expected
    for arguments, message in (
        ((tmp_path / "gpt", ""), "nothing to read"),
        ((tmp_path / "no", TEXT), "no config.json"),
    ):
        assert message in run(*arguments, code=2)
    assert "source" in run(tmp_path / "gpt", TEXT, "--target", "x", code=2)


def test_the_command_reads_masks_with_an_adapter(tmp_path):
    from inspected_models import make

    model = make("bert")
    model.save_to_preset(tmp_path / "bert")
    model.enable_lora(rank=2)
    model.save_adapter(tmp_path / "adapter")
    assert "in place of '[MASK]'" in run(tmp_path / "bert", "to [MASK]e", "--adapter", tmp_path / "adapter")
