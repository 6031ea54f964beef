"""From a Megatron-LM launch script, or a NeMo configuration, to a recipe.

`shell` reads the script (above `commands`, `flow`, `words`, `values` and `tree`), `flags` knows the arguments, `recipe`
maps them, `readings` joins what conditions leave open, `text` prints it. `nemo` comes to the same arguments from
Megatron Bridge's and NeMo's configurations (`nemo_layouts`, `nemo_keys`).
"""
