"""What makes tokens with a model: Keras's programs, or an engine made for a CPU."""

import importlib.util

from kerasllm.compression.post_training import quantized_layers

NEEDS = {  # what each engine imports
    "llama.cpp": ("llama_cpp", "gguf"),
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "keras": (),
}
ENGINES = ("auto", *sorted(NEEDS))
KINDS = {"int8": "q8_0"}  # llama.cpp's nearest to a mode; all others have 4 bits


def use_engine(model, engine: str = "auto") -> str:
    """Lets an engine make a model's tokens, in `generate` and all that is built on it, until its weights change.

    Args:
        model: a model that generates. ONNX Runtime and OpenVINO run any `CausalLM`, with its own quantized weights.
            llama.cpp runs those that are a GPT-2 or a Llama: in 8 bits if it is int8, in 4 bits if it is quantized
            otherwise, in float32 if it is not.
        engine: "keras", "llama.cpp", "onnxruntime", "openvino", or "auto": of those that are installed and run this
            model the fastest, measured on a short answer.

    Returns:
        the name of the engine.

    Raises:
        ImportError: the engine is not installed.
        ValueError: an unknown engine, or one that does not run this model.

    Example:
    ```python
    model.quantize("int8")
    use_engine(model, "onnxruntime")
    model.generate("To be")
    ```
    """
    if engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {', '.join(ENGINES)}. Received: engine={engine!r}")
    if engine == "auto":
        return _fastest(model)
    model._programs = _made(model, engine)
    return engine


def _made(model, engine: str):
    if engine == "keras":
        return None  # They are made when they are used.
    if model.cache_dtype is not None:
        raise ValueError(
            f"The engine {engine!r} keeps keys and values in its own way. Use the engine 'keras', or set "
            f"model.cache_dtype = None. Received: cache_dtype={model.cache_dtype!r}"
        )
    if engine == "llama.cpp":
        from kerasllm.compression.llama_cpp import LlamaCpp

        return LlamaCpp(model, _kind(model))
    from kerasllm.compression.onnx_engines import OnnxPrograms

    return OnnxPrograms(model, engine)


def _fastest(model) -> str:
    from kerasllm.compression.report import tokens_per_second

    fastest, programs, speed = "keras", None, 0.0
    for engine, packages in NEEDS.items():
        if not all(map(importlib.util.find_spec, packages)):
            continue
        if engine == fastest:  # No other one runs here.
            break
        try:
            use_engine(model, engine)
        except ValueError:  # It does not run this model.
            continue
        found = tokens_per_second(model)
        if found > speed:
            fastest, programs, speed = engine, model._programs, found
    model._programs = programs
    return fastest


def _kind(model) -> str:
    modes = {scheme.mode for scheme in quantized_layers(model).values()}
    if not modes or modes == {"float8"}:
        return "f32"
    return KINDS.get(*modes, "q4_0") if len(modes) == 1 else "q4_0"
