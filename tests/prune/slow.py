"""Slow float64 references of the pruning methods, written from the papers' equations."""

from __future__ import annotations

import numpy as np


def drop_lowest(scores, count):
    """False at the `count` lowest of a list, by (score, index)."""
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    return np.array([i not in order[:count] for i in range(len(scores))])


def grouped(scores, n, m):
    """N of each M kept in one row of scores."""
    parts = []
    for j in range(0, len(scores), m):
        group = scores[j : j + m]
        parts.append(drop_lowest(list(group), len(group) - -(-n * len(group) // m)))
    return np.concatenate(parts)


def sparsegpt(weight, gram, share=None, nm=None, block=128, damping=0.01):
    """Algorithm 1 of the paper, one weight at a time: remove w_q, update by OBS.

    The inverse of the Hessian of the columns from j on comes from the rows of the Cholesky factor;
    here each is inverted anew, as equation 3 has it.
    """
    w, width = weight.astype(float).copy(), weight.shape[1]
    h = gram.astype(float).copy()
    dead = np.diag(h) == 0
    h[dead, dead] = 1.0
    w[:, dead] = 0.0
    h += damping * np.mean(np.diag(h)) * np.eye(width)
    inverses = [np.linalg.inv(h[j:, j:]) for j in range(width)]
    first = np.array([inverse[0, 0] for inverse in inverses])  # U_jj squared
    kept = np.ones(w.shape, bool)
    for b0 in range(0, width, block):
        b1 = min(width, b0 + block)
        if share is not None:
            scores = w[:, b0:b1] ** 2 / first[b0:b1]
            count = int(round(scores.size * share, 6))
            kept[:, b0:b1] = drop_lowest(list(scores.ravel()), count).reshape(scores.shape)
        for j in range(b0, b1):
            if nm and j % nm[1] == 0:
                last = min(j + nm[1], width)
                for row in range(len(w)):
                    scores = w[row, j:last] ** 2 / first[j:last]
                    kept[row, j:last] = grouped(scores, *nm)
            for row in range(len(w)):
                if not kept[row, j]:
                    w[row, j:] -= w[row, j] / inverses[j][0, 0] * inverses[j][0]
                    w[row, j] = 0.0
    return w, kept


def refit(weight, gram, kept):
    """Least squares on a support: the best weights that can stand there."""
    h, w = gram.astype(float), weight.astype(float)
    out = np.zeros_like(w)
    for row, keep in enumerate(kept):
        out[row, keep] = np.linalg.solve(h[np.ix_(keep, keep)], h[keep] @ w[row])
    return out


def output_error(weight, new, gram):
    """Relative squared error of the outputs, tr(D H D^T) / tr(W H W^T)."""
    d, w, h = new.astype(float) - weight, weight.astype(float), gram.astype(float)
    return np.trace(d @ h @ d.T) / np.trace(w @ h @ w.T)


def alps(weight, gram, choose):
    """ADMM on (B, D, V) as the paper's algorithm 1 has it, inverses taken anew, then exact refit.

    `choose` gives the support of a matrix. The penalty follows the support's change as in the
    authors' code. Gives the dense variable's support and the weights fitted on it.
    """
    w, h = weight.astype(float), gram.astype(float)
    h = h + 0.01 * np.mean(np.diag(h)) * np.eye(len(h))
    scale = np.sqrt(np.diag(h))
    g, b0 = h / np.outer(scale, scale), w * scale
    rho, found = 0.1, False
    b, v = b0.copy(), np.zeros_like(b0)
    support = choose(b0)
    d, total = b0 * support, support.sum()
    for i in range(300):
        b = (b0 @ g - v + rho * d) @ np.linalg.inv(g + rho * np.eye(len(g)))
        now = choose(b + v / rho)
        d = (b + v / rho) * now
        v = v + rho * (b - d)
        if i % 3 != 2:
            continue
        change, support = (now != support).sum(), now
        if change / total > 0.1:
            found, rho = True, rho * 1.3
        elif change / total > 0.005:
            found, rho = True, rho * 1.2
        elif change > 0.5 and found:
            rho *= 1.1
        elif change > 0.5:
            rho, b, v = rho / 5, b0.copy(), np.zeros_like(b0)
            d = b0 * choose(b0)
        elif found:
            break
        else:
            rho /= 5
        if i >= 30 and change / total < 3e-4:
            break
    kept = choose(b)
    return refit(b0, g, kept) / scale, kept
