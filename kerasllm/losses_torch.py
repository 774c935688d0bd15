"""The linear cross-entropy of `kerasllm.losses` for PyTorch: same chunks, worked on in place."""

import torch


class LinearCrossEntropy(torch.autograd.Function):
    """See `kerasllm.losses.linear_cross_entropy`. A class of its own module, so that torch.compile traces it."""

    @staticmethod
    def forward(ctx, hidden, kernel, targets, weights, chunk_size):
        needs_gradient = any(ctx.needs_input_grad)
        size = chunk_size or hidden.shape[0]
        loss = torch.zeros((), device=hidden.device)
        correct = torch.zeros((), device=hidden.device)
        d_hidden, d_kernel = [], None
        for start in range(0, hidden.shape[0], size):
            h, t, w = (x[start : start + size] for x in (hidden, targets, weights))
            # One (chunk × vocabulary) tensor becomes, in place, its own gradient.
            logits = torch.mm(h, kernel).float()
            column = t.long().unsqueeze(1)
            target = logits.gather(1, column).squeeze(1)
            largest = logits.amax(1)
            logits.sub_(largest.unsqueeze(1)).exp_()
            total = logits.sum(1)
            loss = loss + (w * (largest + total.log() - target)).sum()
            correct = correct + (w * (target >= largest)).sum()
            if needs_gradient:
                d_logits = logits.mul_((w / total).unsqueeze(1))
                d_logits.scatter_add_(1, column, -w.unsqueeze(1))
                d_logits = d_logits.to(hidden.dtype)
                d_hidden.append(torch.mm(d_logits, kernel.t()))
                if d_kernel is None:
                    # Held as (vocabulary, dim): the layout of the tied embedding that it is summed into.
                    d_kernel = torch.mm(d_logits.t(), h).float()
                else:
                    d_kernel += torch.mm(d_logits.t(), h)
        if needs_gradient:
            d_hidden = d_hidden[0] if len(d_hidden) == 1 else torch.cat(d_hidden)
            ctx.save_for_backward(d_hidden, d_kernel.to(kernel.dtype))
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx, d_loss, _):
        d_hidden, d_kernel = ctx.saved_tensors
        return d_hidden * d_loss, (d_kernel * d_loss).t(), None, None, None
