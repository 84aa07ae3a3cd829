"""Scores by a graph network over all samples, with torch-geometric."""

from __future__ import annotations

import hashlib
import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunefuse._extras import needed_for
from prunefuse._seeds import derive, generator, isolated
from prunefuse.extrapolation._agreement import pearson
from prunefuse.extrapolation._interface import BLOCK_ROWS, checked, require_same_kind
from prunefuse.extrapolation._neighbors import METRIC, Finder, magnitude, require_rows
from prunefuse.ops.arrays import as_tensor, like, require_count, require_number

if TYPE_CHECKING:
    from typing_extensions import Self


class GNN:
    """Scores by three graph convolutions over the directed graph of nearest neighbors of all samples, scored or not.

    >>> from prunefuse.extrapolation import GNN
    >>> model = GNN(k=5, epochs=50)

    Each sample has edges from its k nearest samples, with weight e^(−d / 2). Node features are [one-hot label ‖ embedding].
    Layers have 512, 256 and 1 channels, with ReLU and dropout between them. Adam lowers the squared error, and a tenth of
    the scored samples chooses the best epoch by Pearson correlation. What differs from the publication is in docs/paper.md.

    Every step is over the whole graph, in training as in prediction, so a layer sees all neighbors that define it. That
    takes about 10 KB per sample, and the edges. On a CPU the seed fixes the result for a number of threads.

    `fit` takes all samples, with NaN as the score of those without one. They are nodes and send messages, but no score is
    asked of them. `predict` runs the same network over the graph of the samples given. For those of `fit` the graph is
    found once. To predict a sample that `fit` did not see, give it together with the others.

    Args:
        k: Neighbors of each sample, itself apart; 1 to N − 1.
        epochs: Steps, one over the whole graph each.
        temperature: The 2 in e^(−d / 2).
        relative: Weights are e^(−(d − d_min) / temperature), with each sample's smallest distance. False, as published,
            makes the weights of far embeddings vanish beside those of the loops, which are 1. Then the network sees the
            embedding alone.
        labels: (N,) int64 class indices of all samples, for the one-hot part. None is without.
        dropout: Rate after the first two layers, in [0, 1).
        lr: Learning rate.
        validation: Fraction of the scored samples to choose the best epoch with.
        metric, index: As in `nearest_neighbors`.
        seed: Fixes initial weights, dropout and the validation part. Global generators are left as found.

    Attributes:
        network: The trained network, after `fit`.
        validations: Pearson correlation on the validation part after every epoch; None where it is undefined.
        best_epoch: The epoch whose weights are kept, from 1.

    Raises:
        MissingPackageError: From `fit`, where torch-geometric is not installed.
        TypeError: An argument is of another kind; embeddings and scores as `Extrapolator` says.
        ValueError: An argument is out of range; embeddings are not finite; labels are not one for every row.

    References:
        Schmidt et al., [arXiv:2506.09010](https://arxiv.org/abs/2506.09010), and its code.
    """

    transductive = True

    def __init__(
        self,
        k: int = 10,
        epochs: int = 300,
        temperature: float = 2.0,
        *,
        relative: bool = True,
        labels: Any = None,
        dropout: float = 0.5,
        lr: float = 1e-3,
        validation: float = 0.1,
        metric: str = "euclidean",
        index: str | None = None,
        seed: int = 0,
    ) -> None:
        self.k, self.epochs = require_count("k", k, 1), require_count("epochs", epochs, 1)
        for name, value, low, high in (
            ("temperature", temperature, 0.0, math.inf),
            ("dropout", dropout, -math.ulp(0.0), 1.0),
            ("lr", lr, 0.0, math.inf),
            ("validation", validation, 0.0, 1.0),
        ):
            if not low < require_number(name, value) < high:
                raise ValueError(f"{name} must lie between {max(low, 0):g} and {high:g}, got {value}")
        METRIC("metric", metric)
        self.temperature, self.relative, self.dropout, self.lr = temperature, relative, dropout, lr
        self.validation, self.metric, self.index, self.seed = validation, metric, index, seed
        self.labels = None if labels is None else _labels(labels)
        self.network: nn.Module | None = None
        self._graph: tuple[bytes, Any] = (b"", None)  # whose, and its adjacency

    def fit(self, embeddings: Any, scores: Any) -> Self:
        """Train on the scored samples within the graph of all."""
        e, s, rows = checked(embeddings, scores, least=4)
        if self.k >= len(e):
            raise ValueError(f"k must be below the number of rows, {len(e)}, got {self.k}")
        order = torch.randperm(len(rows), generator=generator(self.seed, "gnn", "validation")).to(rows.device)
        held = min(len(rows) - 2, max(2, int(self.validation * len(rows))))
        held_out, training = rows[order[:held]], rows[order[held:]]
        self._like, self._dtype = e[:0].clone(), s.dtype
        self._classes = 0 if self.labels is None else int(self.labels.max()) + 1
        self._shift, self._scale = _moments(e.double())
        shift, scale = _moments(s[training].double())
        self._output = (float(shift), float(scale))
        targets = ((s.double() - shift) / scale).float()
        features = self._features(e)
        with isolated(derive(self.seed, "gnn"), e.device):
            network = _network(features.shape[1], self.dropout).to(e.device)
            digest = self._digest(e)
            if digest != self._graph[0]:
                self._graph = (digest, self._adjacency(e))
            self._train(network, features, targets, training, held_out)
        self.network = network.eval()
        return self

    def predict(self, embeddings: Any) -> Any:
        """Scores (M,) of the nodes of the graph over the rows; RuntimeError before `fit`."""
        if self.network is None:
            raise RuntimeError("GNN: predict was called before fit")
        e = require_rows("embeddings", embeddings)
        require_same_kind(e, self._like)
        if self.k >= len(e):
            raise ValueError(f"embeddings must have more rows than k = {self.k}, got {len(e)}")
        digest, adjacency = self._graph
        if self._digest(e) != digest:
            adjacency = self._adjacency(e)
        with torch.no_grad():
            outputs = self.network(self._features(e), adjacency)[:, 0]
        shift, scale = self._output
        return like(embeddings, (outputs.double() * scale + shift).to(self._dtype))

    def _train(
        self, network: nn.Module, features: Tensor, targets: Tensor, training: Tensor, held_out: Tensor
    ) -> None:
        adjacency = self._graph[1]
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
        validations, best, weights = [], -float("inf"), network.state_dict()
        self.best_epoch = self.epochs
        for epoch in range(1, self.epochs + 1):
            network.train()
            error = (network(features, adjacency)[training, 0] - targets[training]).square().mean()
            optimizer.zero_grad(set_to_none=True)
            error.backward()
            optimizer.step()
            network.eval()
            with torch.no_grad():
                value = pearson(network(features, adjacency)[held_out, 0], targets[held_out])
            validations.append(value)
            if value is not None and value > best:
                best, self.best_epoch = value, epoch
                weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        network.load_state_dict(weights)
        self.validations = tuple(validations)

    def _features(self, e: Tensor) -> Tensor:
        features = ((e.double() - self._shift) / self._scale).float()
        if self.labels is None:
            return features
        if len(self.labels) != len(e):
            raise ValueError(f"labels must be one for each of {len(e)} embeddings, got {len(self.labels)}")
        one_hot = nn.functional.one_hot(self.labels.to(e.device), self._classes)
        return torch.cat((one_hot.float(), features), 1)

    def _digest(self, e: Tensor) -> bytes:
        """Of values and options, to know a graph again without keeping the rows."""
        options = (self.k, self.temperature, self.relative, self.metric, self.index, e.dtype, tuple(e.shape))
        digest = hashlib.blake2b(repr(options).encode())
        for block in e.split(BLOCK_ROWS):
            digest.update(block.contiguous().view(torch.uint8).cpu().numpy())
        return digest.digest()

    def _adjacency(self, e: Tensor) -> Tensor:
        """Row i has what node i hears: its nearest, and itself; normalized as GCN does. Sparse (N, N)."""
        from torch_geometric.nn.conv.gcn_conv import gcn_norm

        distances, sources = others(e, self.k, self.metric, self.index)
        if self.relative:
            distances = distances - distances[:, :1]
        weights = (-distances / self.temperature).exp().float()
        nodes = len(e)
        hears = torch.arange(nodes, device=e.device).repeat_interleave(self.k)
        edges, values = gcn_norm(torch.stack((sources.flatten(), hears)), weights.flatten(), nodes)
        with warnings.catch_warnings():  # that torch calls this layout beta, and does not check it
            warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
            return torch.sparse_coo_tensor(edges.flip(0), values, (nodes, nodes)).coalesce().to_sparse_csr()


def others(e: Tensor, k: int, metric: str, index: str | None) -> tuple[Tensor, Tensor]:
    """Distances (N, k), float64 and ascending, and rows (N, k) of the k rows nearest to each, itself left out."""
    largest = magnitude("embeddings", e)
    distances, rows = Finder(e, metric, index, largest).find(e, k + 1, largest)
    own = rows == torch.arange(len(e), device=e.device)[:, None]
    # A row with more than k equals may not be among its own neighbors: then the last one goes.
    own[:, -1] |= ~own.any(1)
    return distances[~own].double().view(-1, k), rows[~own].view(-1, k)


def _network(inputs: int, dropout: float) -> nn.Module:
    with needed_for("GNN"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # of its own calls of torch.jit
        from torch_geometric.nn import GCNConv, Sequential
    layers: list[Any] = []
    for before, after in ((inputs, 512), (512, 256), (256, 1)):
        if layers:
            layers += [nn.ReLU(), nn.Dropout(dropout)]
        layers.append((GCNConv(before, after, normalize=False), "x, graph -> x"))
    network: nn.Module = Sequential("x, graph", layers)
    return network


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by column; 1 where that is 0."""
    deviation = values.std(0, correction=0)
    return values.mean(0), torch.where(deviation > 0, deviation, 1.0)


def _labels(labels: Any) -> Tensor:
    tensor = as_tensor("labels", labels)
    if tensor.dtype.is_floating_point or tensor.dtype == torch.bool:
        raise TypeError(f"labels must be class indices, got {tensor.dtype}")
    if tensor.dim() != 1 or len(tensor) == 0 or int(tensor.min()) < 0:
        raise ValueError("labels must have shape (N,) and no negative values")
    return tensor.long()
