"""How the files of each format are used, in the words of an export's README.md."""

USE = {
    "tf_saved_model": """```python
import tensorflow as tf

model = tf.saved_model.load("1")  # the newest folder that is named by a number
print({name: f.structured_input_signature[1] for name, f in model.signatures.items()})
```

TensorFlow alone runs it, and `tensorflow_model_server --model_base_path` takes this directory. `serving_default` reads
`token_ids` and `padding_mask` (1 on real tokens). `generate` reads `token_ids` (batch, length), `lengths` (batch,) and
the scalars `max_new_tokens`, `temperature` (0: the likeliest token), `top_k` (0: all), `top_p` (1: all) and `seed`, and
gives `token_ids` and `lengths`. Signatures that end in `_text` take and give strings.
""",
    "onnx": """```python
import numpy as np
import onnxruntime

model = onnxruntime.InferenceSession("model.onnx")
print([(x.name, x.shape) for x in model.get_inputs()])
```

`model.onnx` reads all tokens at once. `decoder.onnx`, where there is one, reads the next tokens of each row with the
keys and values of those before them, and gives them back longer (`past.N.key` → `present.N.key`); of a model with an
encoder, `encoder.onnx` gives it what it attends to. All share `weights.bin`, in float32.
""",
    "openvino": """```python
import openvino

model = openvino.Core().compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
print(model.inputs)
```

Without the hint OpenVINO may compute in bfloat16, a hundredth away. Models are those of the ONNX export.
""",
    "litert": """```python
from ai_edge_litert.interpreter import Interpreter  # or tensorflow.lite.Interpreter

forward = Interpreter("model.tflite").get_signature_runner("serving_default")
print(forward.get_input_details())
```

It is the forward pass, for any batch and length up to the model's.
""",
    "gguf": """```
llama-cli -m model.gguf
```

The file has no vocabulary: the tokenizer beside it (tokenizer.json) makes ids of text, and text of ids.
""",
    "huggingface": """```python
import transformers

model = transformers.AutoModel.from_pretrained(".")
```

vLLM serves it with `vllm serve .`, where it knows the family; `kerasllm` opens it with `from_preset(".")`.
""",
}
