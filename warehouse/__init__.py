"""The lake of embeddings: ingestion, correction, search, evaluation. Never imports torch."""

__version__ = "0.1.0"
