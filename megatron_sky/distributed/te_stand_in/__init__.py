"""Transformer Engine without a GPU: what stands in for its compiled extension in a rehearsal.

Its modules are Python over one compiled extension, `transformer_engine_torch`. With the names of that extension
(`names.py`) and kernels that give shapes and take memory as its own do (`kernels.py`, `attention.py`, `quantized.py`,
`user_buffers.py`), its Python runs as it is. A kernel that is not known here fails by name.
"""
