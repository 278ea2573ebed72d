"""Extractors: images in, embeddings out. May import `warehouse`; `warehouse` never imports this."""
