"""What a model makes of texts: loss and perplexity per domain, signs of leakage, the field's benchmarks.

documents (texts of a domain) -> windows (spans of tokens) -> scoring (a native or Hugging Face model) -> one number a
token -> metrics, leakage (arithmetic, no torch) -> results (files) and tables.
"""
