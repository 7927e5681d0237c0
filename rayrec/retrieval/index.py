"""A dense index of items by inner product: exact, FAISS HNSW or IVF-PQ behind one class; new items can be added."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import torch
from torch import Tensor

from rayrec.files import whole_file

_FAISS: Any = faiss  # its stubs lack the search parameters
_LOGITS = 4 * 2**20  # products of an exact search at a time: 16 MB


@dataclass(frozen=True)
class IndexConfig:
    """How the nearest of many vectors are found."""

    method: Literal["exact", "hnsw", "ivf_pq"] = "exact"
    """"exact" compares all; "hnsw" walks a graph; "ivf_pq" compares codes of clusters near the query."""
    links: int = 32
    """Neighbours of a node of HNSW (M)"""
    build_effort: int = 80
    """Of HNSW (efConstruction)"""
    search_effort: int = 64
    """Of HNSW (efSearch)"""
    lists: int | None = None
    """Clusters of IVF-PQ; None = about 4 * sqrt(items)"""
    probes: int = 32
    """Clusters that a query looks into."""
    code_bytes: int = 32
    """Of an item's code."""
    rerank: int = 10
    """The best rerank * k by codes are compared again by 8 bits a dimension; 0 = codes decide alone."""
    threads: int = 1
    """CPU threads of a search."""

    def __post_init__(self) -> None:
        for name in ("links", "build_effort", "search_effort", "probes", "code_bytes", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if (self.lists is not None and self.lists < 1) or self.rerank < 0:
            raise ValueError("lists must be at least 1 and rerank at least 0")


@dataclass(frozen=True)
class Neighbours:
    """rows: (B, k) int64, best first, -1 where fewer were found. scores: (B, k) float32 inner products, -inf there."""

    rows: Tensor
    scores: Tensor


class DenseIndex:
    """Vectors by row number, in the order in which they were added. Build one by ``DenseIndex.build`` or ``load``."""

    def __init__(self, index: faiss.Index, config: IndexConfig) -> None:
        self._index, self.config = index, config
        faiss.omp_set_num_threads(config.threads)
        self._tune()

    @staticmethod
    def build(vectors: Tensor, config: IndexConfig) -> "DenseIndex":
        """Of vectors (N, D) float32. Raises ValueError when IVF-PQ gets too few of them or D is no multiple of its code bytes."""
        faiss.omp_set_num_threads(config.threads)
        data = _as_array(vectors)
        index = _empty(data.shape[1], len(data), config)
        if not index.is_trained:
            sample = np.random.default_rng(0).permutation(len(data))[: max(256, 50 * _lists(len(data), config))]
            index.train(data[np.sort(sample)])
        index.add(data)
        return DenseIndex(index, config)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        return int(self._index.d)

    def add(self, vectors: Tensor) -> None:
        """Append vectors (n, D); they can be found at once."""
        self._index.add(_as_array(vectors))

    def search(self, queries: Tensor, k: int, *, out: Tensor | None = None) -> Neighbours:
        """The k vectors of largest inner product with each query (B, D).

        out: (N,) bool, rows that are not to be found. A graph or clusters then find fewer than k when few of the near ones are
        left.
        """
        if queries.shape[1] != self.dim:
            raise ValueError(f"queries of {queries.shape[1]} dimensions for an index of {self.dim}")
        flat = faiss.downcast_index(self._index)
        if isinstance(flat, faiss.IndexFlat):
            return _exact_search(flat, queries.detach().cpu().float(), k, out)
        if out is None:
            scores, rows = self._index.search(_as_array(queries), k)
        else:
            left = np.packbits(~out.cpu().numpy(), bitorder="little")
            selector = _FAISS.IDSelectorBitmap(left)
            scores, rows = self._index.search(_as_array(queries), k, params=self._only(self._index, selector))
        missing = torch.from_numpy(rows) < 0
        return Neighbours(torch.from_numpy(rows), torch.from_numpy(scores).masked_fill(missing, -torch.inf))

    def searched_by(self, config: IndexConfig) -> "DenseIndex":
        """The same vectors with the search settings of ``config`` (search_effort, probes, rerank); this one then has them too."""
        return DenseIndex(self._index, config)

    def save(self, file: Path) -> Path:
        """Write FAISS's own format (numbers only) under a temporary name, then rename."""
        with whole_file(file) as partial:
            faiss.write_index(self._index, str(partial))
        return file

    @staticmethod
    def load(file: Path, config: IndexConfig) -> "DenseIndex":
        """Raises ValueError when the file is no index."""
        try:
            return DenseIndex(faiss.read_index(str(file)), config)
        except RuntimeError as error:
            raise ValueError(f"{file}: {str(error).splitlines()[-1]}") from None

    @property
    def bytes(self) -> int:
        """Size of the serialized index."""
        writer = faiss.VectorIOWriter()
        faiss.write_index(self._index, writer)
        return int(writer.data.size())

    def _only(self, index: Any, selector: Any) -> Any:
        """Search settings as ``_tune`` makes them, and which rows count."""
        index, made = faiss.downcast_index(index), _FAISS
        if isinstance(index, faiss.IndexRefine):
            base = self._only(index.base_index, selector)
            return made.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=base)
        if isinstance(index, faiss.IndexIVF):
            return made.SearchParametersIVF(sel=selector, nprobe=index.nprobe)
        return made.SearchParametersHNSW(sel=selector, efSearch=index.hnsw.efSearch)

    def _tune(self) -> None:
        """Search settings are no part of the file."""
        index = faiss.downcast_index(self._index)
        if isinstance(index, faiss.IndexRefine):
            index.k_factor = float(max(self.config.rerank, 1))
            index = faiss.downcast_index(index.base_index)
        if isinstance(index, faiss.IndexIVF):
            index.nprobe = min(self.config.probes, index.nlist)
        if isinstance(index, faiss.IndexHNSW):
            index.hnsw.efSearch = self.config.search_effort


def _exact_search(index: faiss.IndexFlat, queries: Tensor, k: int, out: Tensor | None = None) -> Neighbours:
    """By blocks of matrix products and their best. FAISS's own search compares one by one until queries x dimensions reach
    128,000 (version 1.15), which takes ten times as long, and its products' threads get into the way of torch's.
    """
    count, dim = int(index.ntotal), int(index.d)
    vectors = torch.from_numpy(faiss.rev_swig_ptr(index.get_xb(), count * dim).reshape(count, dim))  # a view
    scores, rows = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    size = max(k, 1024, _LOGITS // max(len(queries), 1))
    for start in range(0, count, size):
        products = queries @ vectors[start : start + size].T
        if out is not None:
            products.masked_fill_(out[start : start + size], -torch.inf)
        best, places = products.topk(min(k, count - start, size), dim=1)
        scores, kept = torch.cat([scores, best], 1).topk(min(k, scores.shape[1] + best.shape[1]), dim=1)
        rows = torch.cat([rows, places + start], 1).gather(1, kept)
    if out is not None:
        rows = rows.masked_fill(scores == -torch.inf, -1)
    missing = k - rows.shape[1]
    return Neighbours(
        torch.nn.functional.pad(rows, (0, missing), value=-1),
        torch.nn.functional.pad(scores, (0, missing), value=-torch.inf),
    )


def _empty(dim: int, count: int, config: IndexConfig) -> faiss.Index:
    metric = faiss.METRIC_INNER_PRODUCT
    if config.method == "exact":
        return faiss.IndexFlatIP(dim)
    if config.method == "hnsw":
        index = faiss.IndexHNSWFlat(dim, config.links, metric)
        index.hnsw.efConstruction = config.build_effort
        return index
    lists = _lists(count, config)
    if dim % config.code_bytes:
        raise ValueError(f"{dim} dimensions are no multiple of code_bytes {config.code_bytes}")
    if count < max(256, lists):
        raise ValueError(f"ivf_pq needs at least {max(256, lists)} vectors to learn its codes from, not {count}")
    description = f"IVF{lists},PQ{config.code_bytes}" + (",Refine(SQ8)" if config.rerank else "")
    made = faiss.index_factory(dim, description, metric)
    _train_without_polysemy(faiss.downcast_index(faiss.extract_index_ivf(made)))
    return made


def _train_without_polysemy(index: Any) -> None:
    """Polysemous training serves Hamming distances, which nothing here uses; it takes seconds however few vectors there are."""
    index.do_polysemous_training = False


def _lists(count: int, config: IndexConfig) -> int:
    return config.lists or max(1, int(4 * count**0.5))


def _as_array(vectors: Tensor) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    return np.ascontiguousarray(vectors.detach().cpu().float().numpy())
