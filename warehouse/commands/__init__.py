"""Commands that need no extractor: each parses, calls one function, and prints; `cli.py` lists them."""
