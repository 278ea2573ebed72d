"""The warehouse: the lake of embeddings, its ingestion, correction, search and evaluation. Never imports torch."""

__version__ = "0.1.0"
