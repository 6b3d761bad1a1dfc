"""How alike two sublayers' outputs are: linear CKA (paper, Section 5.6; Kornblith et al., 2019)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ffmerge.alignment import to_exact


def cka(x: Tensor, y: Tensor) -> float:
    """Linear centered kernel alignment of two sets of outputs.

    ||Yᵀ X||² / (||Xᵀ X|| ||Yᵀ Y||) with centred columns and Frobenius norms.

    Args:
        x, y: (n_tokens, d) each, the same tokens in the same order; widths may differ.

    Returns:
        A number in [0, 1]; 0 where x or y is constant.

    Invariant: unchanged by rotating, scaling or shifting x or y.
    """
    return float(cka_matrix([x, y], progress=False)[0, 1])


def compare_sublayers(outputs: Mapping[str, Sequence[Tensor]]) -> list[tuple[str, int, int, float]]:
    """Linear CKA of all pairs of sublayers within each stack (Section 5.6, Appendix G).

    An encoder and a decoder see different tokens, so they are not compared.

    Args:
        outputs: outputs[stack][i] (n_tokens, d_model), as `collect_outputs` gives them, or
            `record_outputs`.

    Returns:
        (stack, a, b, CKA of sublayers a and b), every pair both ways round.
    """
    rows = []
    for name, layers in outputs.items():
        matrix = cka_matrix(layers).tolist()
        rows += [(name, a, b, x) for a, row in enumerate(matrix) for b, x in enumerate(row)]
    return rows


def cka_matrix(outputs: Sequence[Tensor], progress: bool = True) -> Tensor:
    """Linear CKA of all pairs; two outputs at a time are held in float64.

    Args:
        outputs: (n_tokens, d) each, in memory or recorded on disk.
        progress: whether to show a bar.

    Returns:
        (len(outputs), len(outputs)) float64, symmetric, with a diagonal of ones.
    """
    matrix = torch.eye(len(outputs), dtype=torch.float64)
    norms = torch.empty(len(outputs), dtype=torch.float64)
    for i in tqdm(range(len(outputs)), desc="CKA", unit="row", disable=not progress):
        x = _center(outputs[i])
        norms[i] = torch.linalg.matrix_norm(x.T @ x)
        for j in range(i):
            scale = norms[i] * norms[j]
            if scale > 0:
                y = _center(outputs[j])
                matrix[i, j] = torch.linalg.matrix_norm(y.T @ x) ** 2 / scale
            matrix[j, i] = matrix[i, j]
    return matrix


def _center(x: Tensor) -> Tensor:
    x = to_exact(x)
    return x - x.mean(0)
