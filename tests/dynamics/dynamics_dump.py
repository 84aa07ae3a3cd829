"""Every score by its definition from the full dump: logits of all epochs, float64, NumPy."""

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def true_class(logits, labels):
    """(T, N) of (T, N, C)."""
    return softmax(logits)[:, np.arange(len(labels)), labels]


def windows_of(p, window, omitted):
    count = len(p) - window + 1 - omitted
    return [p[k : k + window] for k in range(count)]


def du(p, window, ddof, omitted):
    return np.mean([w.std(0, ddof=ddof) for w in windows_of(p, window, omitted)], 0)


def dual(p, window, ddof, omitted, trajectory=None):
    parts = windows_of(p[:trajectory], window, omitted)
    return np.mean([w.std(0, ddof=ddof) * (1 - w.mean(0)) for w in parts], 0)


def tdds(logits, window, beta, trajectory=None, epsilon=1e-8):
    q = softmax(logits[:trajectory])
    logs = np.log(q + epsilon)
    d = np.abs(q[1:] * (logs[1:] - logs[:-1])).sum(2)
    epochs = len(q)
    total = 0
    for k in range(epochs - window + 1):
        part = d[k : k + window - 1]
        v = np.linalg.norm(part - part.mean(0), axis=0)
        total = total + v * beta * (1 - beta) ** (epochs - window - k)
    return total


def losses(logits, labels):
    return -np.log(true_class(logits, labels))


def el2n(logits, labels, epochs=None):
    error = softmax(logits)
    error[:, np.arange(len(labels)), labels] -= 1
    norms = np.linalg.norm(error, axis=2)
    return norms if epochs is None else norms[[e - 1 for e in epochs]]


def margins(logits, labels):
    rows = np.arange(len(labels))
    own = logits[:, rows, labels].copy()
    others = logits.copy()
    others[:, rows, labels] = -np.inf
    return own - others.max(2)


def forgetting(logits, labels):
    right = logits.argmax(2) == labels
    events = (right[:-1] & ~right[1:]).sum(0).astype(float)
    events[~right.any(0)] = np.inf
    return events
