"""What is generated from: texts or token ids, fitted to the model, and where answers stop."""


def token_prompts(model, prompts):
    """(list of token id lists, whether they came as text, whether there was only one)."""
    if isinstance(prompts, str):
        texts, single = [prompts], True
    elif len(prompts) == 0:
        raise ValueError("There is no prompt. Received: an empty list")
    elif all(isinstance(p, str) for p in prompts):
        texts, single = list(prompts), False
    else:
        single = not hasattr(prompts[0], "__len__")
        batch = [prompts] if single else prompts
        for ids in batch:
            model.check_token_ids(ids)
        return [[int(t) for t in ids] for ids in batch], False, single
    if model.tokenizer is None:
        raise ValueError("The model has no tokenizer, so prompts must be lists of token ids. Received: text")
    if model.config.num_encoder_layers:
        return [model.encode_source(text) for text in texts], True, single
    return model.tokenizer.encode_texts(texts), True, single


def fit_context(model, ids, max_new_tokens, truncation):
    limit = model.config.max_sequence_length
    if not ids:
        end = model.tokenizer.end_token_id if model.tokenizer else None
        if end is None:
            raise ValueError("The prompt is empty. Give at least one token to begin with.")
        return [end]  # The token between documents: the model begins a new one.
    if truncation:
        return ids[-(limit - 1) :] if len(ids) >= limit else list(ids)
    if len(ids) >= limit:
        raise ValueError(
            f"The prompt has {len(ids)} tokens, and the model's context is {limit}, with at least one to make. "
            "Shorten it, or pass truncation=True to keep its end."
        )
    if len(ids) + max_new_tokens > limit:
        raise ValueError(
            f"The prompt's {len(ids)} tokens and max_new_tokens={max_new_tokens} exceed the model's context of "
            f"{limit}. Ask for at most {limit - len(ids)}, or pass truncation=True to let the context slide."
        )
    return list(ids)


def fit_source(model, ids, truncation):
    limit = model.config.max_sequence_length
    if not ids:
        raise ValueError("The source is empty. Give at least one token.")
    if len(ids) > limit and not truncation:
        raise ValueError(
            f"The source has {len(ids)} tokens, and the encoder reads {limit}. "
            "Shorten it, or pass truncation=True to keep its beginning."
        )
    return list(ids[:limit])


def stop_strings(model, stop):
    if stop is None:
        return ()
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(s, str) and s for s in stop):
        raise ValueError(f"`stop` must be a string or a list of strings, none empty. Received: {stop!r}")
    if model.tokenizer is None:
        raise ValueError("Stop strings need a tokenizer, and the model has none. Use `stop_token_ids`.")
    return stop


def stop_token_ids_of(model, ids) -> frozenset[int]:
    if ids is None:
        end = model.tokenizer.end_token_id if model.tokenizer else None
        return frozenset() if end is None else frozenset([end])
    ids = list(ids) if hasattr(ids, "__iter__") else [ids]
    if ids:
        model.check_token_ids(ids)
    return frozenset(int(i) for i in ids)
