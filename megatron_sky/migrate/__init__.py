"""From a Megatron-LM launch script to a recipe.

`shell` reads the script (above `commands`, `flow`, `words`, `values` and `tree`), `flags` knows the arguments, `recipe`
maps them, `readings` joins what conditions leave open, `text` prints it.
"""
