"""From a Megatron-LM launch script to a recipe.

`shell` reads the script, `flags` knows the arguments, `recipe` maps them, `text` tells it.
"""
