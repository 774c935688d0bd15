"""The shape of every weight from the config alone, which files are checked against before anything is allocated."""

from kerasllm.config import TransformerConfig

Shapes = dict[str, tuple[int, ...]]


def weight_shapes(config: TransformerConfig) -> Shapes:
    """Shapes of the weights of a `Transformer` or an `EncoderDecoder`, under their paths below it."""
    shapes = _under("embedding", _embedding(config))
    if config.num_encoder_layers:
        shapes |= _under("encoder", _stack(config, config.num_encoder_layers))
        return shapes | _under("decoder", _stack(config, config.num_layers, cross_attention=True))
    if config.pooler:
        shapes |= _under("pooler", _dense(config.hidden_dim, config.hidden_dim))
    return shapes | _stack(config, config.num_layers)


def head_shapes(task: str, config: TransformerConfig, num_labels: int, use_bias: bool = True) -> Shapes:
    """Shapes of what a task has beside the transformer."""
    d = config.hidden_dim
    if task in ("MaskedLM", "PairedMaskedLM"):
        head = {**_under("dense", _dense(d, d, config.use_bias)), **_under("norm", _norm(config))}
        head = _under("masked_head", {**head, "bias": (config.vocabulary_size,)})
        return head if task == "MaskedLM" else {**head, **_under("next_sentence", _dense(d, 2))}
    if task == "ReplacedTokenDetector":
        return _denses({"detector_dense": (d, d), "detector_logit": (d, 1)}, bias=True)
    if task in ("TextClassifier", "TokenClassifier"):
        return _under("classifier", _dense(d, num_labels, use_bias))
    return {}


def _embedding(c: TransformerConfig) -> Shapes:
    shapes = {"tokens/embeddings": (c.vocabulary_size, c.hidden_dim)}
    if not c.tie_embeddings:
        shapes["tokens/reverse_embeddings"] = (c.hidden_dim, c.vocabulary_size)
    if c.positions == "learned":
        shapes["positions/embeddings"] = (c.max_sequence_length, c.hidden_dim)
    if c.num_segments:
        shapes["segments/embeddings"] = (c.num_segments, c.hidden_dim)
    return shapes | (_under("norm", _norm(c)) if c.embedding_norm else {})


def _stack(c: TransformerConfig, num_layers: int, cross_attention: bool = False) -> Shapes:
    block = _block(c, cross_attention)
    shapes = {}
    for i in range(num_layers):
        shapes |= _under(f"block_{i}", block)
    if c.norm_position == "pre":
        shapes |= _under("final_norm", _norm(c))
    if c.positions == "relative":
        shapes["relative_bias/embeddings"] = (c.relative_buckets, c.num_heads)
    return shapes


def _block(c: TransformerConfig, cross_attention: bool) -> Shapes:
    layers = {"attention": _attention(c), "attention_norm": _norm(c)}
    layers |= {"feed_forward": _feed_forward(c), "feed_forward_norm": _norm(c)}
    if cross_attention:
        layers |= {"source_attention": _attention(c), "source_norm": _norm(c)}
    return {path: shape for name, layer in layers.items() for path, shape in _under(name, layer).items()}


def _attention(c: TransformerConfig) -> Shapes:
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    sizes = {"query": (c.hidden_dim, q), "key": (c.hidden_dim, kv), "value": (c.hidden_dim, kv)}
    return _denses({**sizes, "output_dense": (q, c.hidden_dim)}, c.use_bias)


def _feed_forward(c: TransformerConfig) -> Shapes:
    wide, narrow = (c.hidden_dim, c.intermediate_dim), (c.intermediate_dim, c.hidden_dim)
    return _denses({"up": wide, "down": narrow, **({"gate": wide} if c.gated else {})}, c.use_bias)


def _denses(sizes: dict[str, tuple[int, int]], bias: bool) -> Shapes:
    return {path: s for name, size in sizes.items() for path, s in _under(name, _dense(*size, bias)).items()}


def _dense(inputs: int, outputs: int, bias: bool = True) -> Shapes:
    return {"kernel": (inputs, outputs), **({"bias": (outputs,)} if bias else {})}


def _norm(c: TransformerConfig) -> Shapes:
    if c.norm == "rms_norm":
        return {"scale": (c.hidden_dim,)}
    return {"gamma": (c.hidden_dim,), **({"beta": (c.hidden_dim,)} if c.use_bias else {})}


def _under(name: str, shapes: Shapes) -> Shapes:
    return {f"{name}/{path}": shape for path, shape in shapes.items()}
