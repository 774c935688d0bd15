"""The linear cross-entropy of `kerasllm.losses` for PyTorch: same chunks, worked on in place."""

import torch


class LinearCrossEntropy(torch.autograd.Function):
    """See `kerasllm.losses.linear_cross_entropy`. A class of its own module, so that torch.compile traces it."""

    @staticmethod
    def forward(ctx, hidden, kernel, targets, weights, chunk_size, smoothing, z_loss):
        needs_gradient, trains_kernel = any(ctx.needs_input_grad), ctx.needs_input_grad[1]
        size = chunk_size or hidden.shape[0]
        loss = nll = correct = torch.zeros((), device=hidden.device)
        plain = not (smoothing or z_loss)
        d_hidden, d_kernel = [], None
        for start in range(0, hidden.shape[0], size):
            h, t, w = (x[start : start + size] for x in (hidden, targets, weights))
            # One (chunk × vocabulary) tensor becomes, in place, its own gradient.
            logits = torch.mm(h, kernel).float()
            column = t.long().unsqueeze(1)
            target = logits.gather(1, column).squeeze(1)
            largest = logits.amax(1)
            mean = logits.mean(1) if smoothing else 0.0
            logits.sub_(largest.unsqueeze(1)).exp_()
            total = logits.sum(1)
            normalizer = largest + total.log()
            nll = nll + (w * (normalizer - target)).sum()
            if not plain:
                smoothed = (1 - smoothing) * target + smoothing * mean
                loss = loss + (w * (normalizer - smoothed + z_loss * normalizer**2)).sum()
            correct = correct + (w * (target >= largest)).sum()
            if needs_gradient:
                scale = w * (1 + 2 * z_loss * normalizer) if z_loss else w
                d_logits = logits.mul_((scale / total).unsqueeze(1))
                on_target = (1 - smoothing) * w if smoothing else w
                d_logits.scatter_add_(1, column, -on_target.unsqueeze(1))
                if smoothing:
                    d_logits.sub_((smoothing / kernel.shape[1] * w).unsqueeze(1))
                d_logits = d_logits.to(hidden.dtype)
                d_hidden.append(torch.mm(d_logits, kernel.t()))
                if not trains_kernel:
                    continue
                if d_kernel is None:
                    # Held as (vocabulary, dim): the layout of the tied embedding that it is summed into.
                    d_kernel = torch.mm(d_logits.t(), h).float()
                else:
                    d_kernel += torch.mm(d_logits.t(), h)
        if needs_gradient:
            d_hidden = d_hidden[0] if len(d_hidden) == 1 else torch.cat(d_hidden)
            ctx.save_for_backward(d_hidden, d_kernel.to(kernel.dtype) if trains_kernel else None)
        ctx.mark_non_differentiable(correct, *([] if plain else [nll]))
        return (nll, correct) if plain else (loss, correct, nll)

    @staticmethod
    def backward(ctx, d_loss, *_):
        d_hidden, d_kernel = ctx.saved_tensors
        d_kernel = None if d_kernel is None else (d_kernel * d_loss).t()
        return d_hidden * d_loss, d_kernel, None, None, None, None, None
