"""The corpus pipeline: crawl files to text and token files by domain, on datatrove's executors, readers' rules ours.

Every document that is read ends in exactly one place: an output, a held-out set, or a drop with its stage and rule
(`ledger`). Nothing here imports datatrove but the modules that hold its steps.
"""
