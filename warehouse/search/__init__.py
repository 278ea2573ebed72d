"""Similarity search over vectors: exact or by FAISS structures, filters before the ranking; knows nothing of a lake."""

from warehouse.search.groups import Excluded
from warehouse.search.index import Found, Index, Mask

__all__ = ["Excluded", "Found", "Index", "Mask"]
