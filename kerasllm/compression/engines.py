"""What makes tokens with a model: Keras's programs, or an engine made for a CPU."""

import importlib.util

from kerasllm.compression.post_training import quantized_layers

ENGINES = ("auto", "keras", "llama.cpp")
KINDS = {"int8": "q8_0"}  # llama.cpp's nearest to a mode; all others have 4 bits


def use_engine(model, engine: str = "auto") -> str:
    """Lets an engine make a model's tokens, in `generate` and all that is built on it, until its weights change.

    Args:
        model: a model that generates. llama.cpp runs a `CausalLM` that is a GPT-2 or a Llama: in 8 bits if it is
            int8, in 4 bits if it is quantized otherwise, in float32 if it is not.
        engine: "keras", "llama.cpp", or "auto": of those that are installed and run this model the faster, measured.

    Returns:
        the name of the engine.

    Raises:
        ImportError: the engine is not installed.
        ValueError: an unknown engine, or one that does not run this model.

    Example:
    ```python
    model.quantize("int8")
    use_engine(model, "llama.cpp")
    model.generate("To be")
    ```
    """
    if engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {', '.join(ENGINES)}. Received: engine={engine!r}")
    if engine == "llama.cpp":
        from kerasllm.compression.llama_cpp import LlamaCpp

        model._programs = LlamaCpp(model, _kind(model))
    else:
        model._programs = None
    if engine != "auto":
        return engine
    if importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("gguf") is None:
        return "keras"
    return _faster(model)


def _faster(model) -> str:
    from kerasllm.compression.report import tokens_per_second

    keras = tokens_per_second(model)
    try:
        use_engine(model, "llama.cpp")
    except ValueError:  # It does not run this model.
        return "keras"
    if tokens_per_second(model) >= keras:
        return "llama.cpp"
    return use_engine(model, "keras")


def _kind(model) -> str:
    modes = {scheme.mode for scheme in quantized_layers(model).values()}
    if not modes or modes == {"float8"}:
        return "f32"
    return KINDS.get(*modes, "q4_0") if len(modes) == 1 else "q4_0"
