"""How much `fit`, `evaluate` and `generate` of a small model compile: prints "training steps + decoding programs".

On JAX every compilation by XLA is counted, on TensorFlow the traces of the step functions, and on PyTorch, whose steps
are eager, the decoding programs alone.
"""

import keras
import numpy as np

import kerasllm
from kerasllm.generation.programs import programs_of


def main() -> None:
    compiled = []
    if keras.backend.backend() == "jax":
        import jax

        jax.monitoring.register_event_duration_secs_listener(
            lambda name, *_, **__: compiled.append(name) if name.endswith("backend_compile_duration") else None
        )
    keras.utils.set_random_seed(0)
    config = kerasllm.TransformerConfig(64, 64, num_layers=1, num_heads=2, hidden_dim=16)
    model, ids = kerasllm.CausalLM(config), np.random.default_rng(0).integers(0, 64, (20, 17))
    model.compile("adamw")
    model.fit(ids, validation_data=(ids[:9],), batch_size=8, epochs=2, verbose=0)
    model.evaluate(ids, batch_size=8, verbose=0)
    functions = (model.train_function, model.test_function)
    traces = [getattr(f, "experimental_get_tracing_count", lambda: 0)() for f in functions]
    before = len(compiled)
    for prompt in (ids[0], ids[1, :9], ids[2, :5]):
        model.generate(prompt, 8)
        model.generate(prompt, 8, sampler="top_p", temperature=0.7)
    print(f"{before or sum(traces)} + {len(compiled) - before or programs_of(model).compilations}")


if __name__ == "__main__":
    main()
