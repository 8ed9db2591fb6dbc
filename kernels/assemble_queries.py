"""assemble_queries: the decoder's queries, one for each token to decode.

    out[b, m] = mask_token + table[masked[b, m]]

A read of one row and a write of one row for each query; nothing is expanded over the batch first.
"""

import torch.nn.functional as F
from torch import Tensor


def assemble_queries(mask_token: Tensor, table: Tensor, masked: Tensor) -> Tensor:
    """mask_token (D,), table (N, D) position embeddings, masked (B, M) grid positions -> (B, M, D) in table's dtype.

    Raises ValueError where the ranks or widths differ.
    """
    if mask_token.ndim != 1 or table.ndim != 2 or masked.ndim != 2 or mask_token.shape[0] != table.shape[1]:
        raise ValueError(
            "assemble_queries: want mask_token (D,), table (N, D), masked (B, M); "
            f"got {tuple(mask_token.shape)}, {tuple(table.shape)}, {tuple(masked.shape)}"
        )
    return mask_token + F.embedding(masked.long(), table)
