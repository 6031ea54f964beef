"""Checkpoints from one format to another, tensor by tensor, without a GPU and without the model.

A *source* (`sources.open_source`) is a checkpoint folder opened for reading: the model's shape, and one lazy tensor for
every weight under one set of names (`checkpoint.reader.weights`). A writer (`huggingface.folder`, `native`) takes a
source and streams it out, compares what goes to the disk, opens the result as its users will, and only then gives the
folder its name (`output`). `compare.check` compares two folders by their logits.

    native torch_dist, Megatron-LM torch_dist ┐                ┌ Hugging Face folder
    Megatron-LM mp_rank_XX[_YYY] files        ├─ source ─────► ┤
    Hugging Face folder                       ┘                └ native torch_dist checkpoint
"""
