"""Training texts with words left out.

A body comes to know the texts it learns from: on them it is far nearer to the teacher than on any other, which misleads
the gates that are fitted to it. Texts it never saw in full keep it from that.
"""

from dataclasses import replace

import torch

from hadskip_export.trainers.batches import TrainingBatch

LEAST, MOST = 0.05, 0.3  # share of its words that a text loses


def drop_words(batch: TrainingBatch) -> TrainingBatch:
    """Half of the texts lose some of their tokens, torch's generator says which; separators stay, which are all that is
    like a text's first token or its last."""
    ids, mask, types = batch.inputs
    count, device = len(ids), ids.device
    altered = torch.randperm(count, device=device) < count // 2
    share = LEAST + (MOST - LEAST) * torch.rand(count, 1, device=device)
    last = ids.gather(1, mask.sum(dim=1, keepdim=True) - 1)
    stays = ~altered[:, None] | (ids == ids[:, :1]) | (ids == last) | (torch.rand(ids.shape, device=device) >= share)
    kept = stays & mask.bool()
    order = kept.int().argsort(dim=1, descending=True, stable=True)[:, : int(kept.sum(dim=1).max())]
    kept, ids, types = (values.gather(1, order) for values in (kept, ids, types))
    return replace(batch, inputs=(ids * kept, kept.to(mask.dtype), types * kept), altered=altered)
